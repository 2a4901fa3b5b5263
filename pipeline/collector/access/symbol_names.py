"""The names in a kernel's symbol table, found without decompressing them all.

scripts/kallsyms.c compresses the names, each with nm's type in front. A byte value that no name uses becomes a token:
it replaces the pair of bytes that is then the most frequent, from left to right in every name. The values are used from
255 down. Whatever replaces the same pairs in the same order compresses a name as the kernel's build did, so a name that
the table lacks in this form is not in the kernel.

The table has only the text of each token. Replacing the pairs of the earlier tokens in the text leaves the token's own
pair: where the build made the token, no earlier pair reached across the ends of the text.
"""

from array import array
from bisect import bisect_left

# The types of nm(1), one of which is the first character of each entry.
_NM_TYPES = "AaBbCcDdGgIiNnPpRrSsTtUuVvWw-?"
# Not a byte, so no pair contains it.
_SEPARATOR = "\u0100"
# One name in this many is compressed again, to check that the build compressed as described above. That is 400 of
# 100,000 names and takes a millisecond.
_CHECK_INTERVAL = 256


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
        if self._pairs is not None:
            checked = range(0, count, _CHECK_INTERVAL)
            texts = [self._decompress(i).decode("latin-1") for i in checked]
            if self._compress(texts) != [self._entry(i) for i in checked]:
                self._pairs = None

    def __len__(self):
        return len(self._starts) - 1

    def __getitem__(self, index):
        return self._decompress(index)[1:]

    def __iter__(self):
        return map(self.__getitem__, range(len(self)))

    def find(self, name):
        """Yield the index of each symbol with a name, the last one first: variables follow the functions."""
        return (index for index in self._candidates(name) if self[index] == name)

    def _candidates(self, name):
        """Yield the indices of the symbols that can have a name, the last one first."""
        suffix = self._compressed_suffix(name)
        if not suffix:
            yield from reversed(range(len(self)))
            return
        end = len(self._data)
        while True:
            position = self._data.rfind(suffix, 0, end)
            if position < 0:
                return
            end = position + len(suffix)
            next_index = bisect_left(self._starts, end)
            if self._starts[next_index] == end:
                yield next_index - 1
            end -= 1

    def _compressed_suffix(self, name):
        """Return the end of a compressed name that is the same for every type; empty if there is none."""
        if self._pairs is None:
            return b""
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
    """Return each token's pair and the token, both as text, in the order of replacement; None if one has no pair."""
    pairs = []
    for value in reversed(range(256)):
        text = tokens[value].decode("latin-1")
        for pair, token in pairs:
            text = text.replace(pair, token)
        if len(text) == 2:
            pairs.append((text, chr(value)))
        elif text not in ("", chr(value)):
            return None
    return pairs
