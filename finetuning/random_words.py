"""Random numbers for dropout on a CPU, compiled: torch draws them there on one thread."""
import numpy as np

from common.compiled import compiled


@compiled
def draw_words(words, seed):
    """Fills `words`, uint64, with SplitMix64 (Steele, Lea and Flood 2014), a hash of a counter that starts at `seed`."""
    for index in range(len(words)):
        word = seed + np.uint64(index) * np.uint64(0x9E3779B97F4A7C15)
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        words[index] = word ^ (word >> np.uint64(31))


@compiled
def choose(numbers, most, low, high):
    """Makes numbers of at most `most` `low`, and the others `high`; all of one unsigned type."""
    for index in range(len(numbers)):
        numbers[index] = low if numbers[index] <= most else high
