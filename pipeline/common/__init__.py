"""What most rooms use and nothing else: text, output files, temporary directories, the data folders, errors."""
