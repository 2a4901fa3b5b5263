"""The names in a kernel's symbol table, found without decompressing them all.

scripts/kallsyms.c compresses the names, each with nm's type in front. A byte value that no name uses becomes a token:
it replaces the pair of bytes that is then the most frequent, from left to right in every name. The values are used from
255 down. Whatever replaces the same pairs in the same order compresses a name as the kernel's build did. A name that
the table lacks in this form is searched for by every pair of tokens that can end it, so it is missing only if no entry
decompresses to it.

The table has only the text of each token. Replacing the pairs of the earlier tokens in the text leaves the token's own
pair: where the build made the token, no earlier pair reached across the ends of the text.
"""

from array import array
from bisect import bisect_left

# The types of nm(1), one of which is the first character of each entry.
_NM_TYPES = "AaBbCcDdGgIiNnPpRrSsTtUuVvWw-?"
# Not a byte, so no pair contains it.
_SEPARATOR = "\u0100"


class SymbolNames:
    """The names of the symbols in the order of their table: a sequence of bytes.

    :param data: ``kallsyms_names``; may have other bytes behind it.
    :param count: number of names.
    :param tokens: bytes that each of the 256 byte values stands for.
    :raises IndexError: the data end before the last name.
    """

    def __init__(self, data, count, tokens):
        self._tokens = tokens
        self._starts = _entry_starts(data, count)
        self._data = data[: self._starts[-1]]
        self._pairs = _token_pairs(tokens)

    def __len__(self):
        return len(self._starts) - 1

    def __getitem__(self, index):
        return self._decompress(index)[1:]

    def __iter__(self):
        return map(self.__getitem__, range(len(self)))

    def find(self, name):
        """Return the index of each symbol with a name, the last one first: variables follow the functions."""
        suffix = self._compressed_suffix(name)
        return self._find_ending(name, [suffix] if suffix else []) or self._find_ending(name, self._last_pairs(name))

    def _find_ending(self, name, endings):
        """Return the index of each symbol with a name whose entry has one of these endings, the last one first."""
        indices = {index for ending in endings for index in self._entries_ending(ending) if self[index] == name}
        return sorted(indices, reverse=True)

    def _entries_ending(self, ending):
        """Yield the index of each entry with an ending."""
        position = self._data.find(ending)
        while position >= 0:
            next_index = bisect_left(self._starts, position + len(ending))
            if self._starts[next_index] == position + len(ending):
                yield next_index - 1
            position = self._data.find(ending, position + 1)

    def _last_pairs(self, name):
        """Return the last two bytes of each entry that can stand for a name, however it is compressed."""
        pairs = []
        for last in self._last_tokens(name):
            text = self._tokens[last]
            if len(text) > len(name):  # the only token, behind a length of 1
                pairs.append(bytes([1, last]))
            else:
                pairs += [bytes([token, last]) for token in self._last_tokens(name[: len(name) - len(text)])]
        return pairs

    def _last_tokens(self, name):
        """Return the tokens that can end an entry for a name, of which one may reach back to the type in front."""
        return [value for value, text in enumerate(self._tokens) if text and (name.endswith(text) or text[1:] == name)]

    def _compressed_suffix(self, name):
        """Return the end of a compressed name that is the same for every type; empty if there is none."""
        text = name.decode("latin-1")
        entries = self._compress(nm_type + text for nm_type in _NM_TYPES)
        suffix = entries[0]
        while not all(entry.endswith(suffix) for entry in entries):
            suffix = suffix[1:]
        return suffix

    def _compress(self, texts):
        joined = _SEPARATOR.join(texts)
        for pair, token in self._pairs:
            joined = joined.replace(pair, token)
        return [text.encode("latin-1") for text in joined.split(_SEPARATOR)]

    def _decompress(self, index):
        return b"".join(map(self._tokens.__getitem__, self._entry(index)))

    def _entry(self, index):
        start = self._starts[index]
        return self._data[start + (2 if self._data[start] & 0x80 else 1) : self._starts[index + 1]]


def _entry_starts(data, count):
    """Return the offset of each entry, a length and that number of bytes, and of the end of the last one."""
    position = 0
    starts = array("I", [position])
    append = starts.append
    for _ in range(count):
        length = data[position]
        # Two bytes since commit 73bbb94466fd ("kallsyms: support "big" kernel symbols") (in v6.1).
        if length & 0x80:
            length = (length & 0x7F | data[position + 1] << 7) + 1
        position += length + 1
        append(position)
    return starts


def _token_pairs(tokens):
    """Return the pair and the token of each token of two, both as text, in the order of replacement."""
    pairs = []
    for value in reversed(range(256)):
        text = tokens[value].decode("latin-1")
        for pair, token in pairs:
            text = text.replace(pair, token)
        if len(text) == 2:
            pairs.append((text, chr(value)))
    return pairs
