"""The random numbers of Python's `random`, in compiled functions."""
import numpy as np

from common.compiled import compiled

WORDS, SHIFTED = 624, 397  # of the Mersenne Twister MT19937 (Matsumoto and Nishimura 1998)


def twister(rng):
    """The state of a random.Random for the functions below, uint32 [625], a copy: `rng` stays as it is."""
    return np.array(rng.getstate()[1], np.uint32)


@compiled
def renew(state):
    """Makes the next 624 words."""
    for k in range(WORDS):
        following, other = k + 1 if k + 1 < WORDS else 0, k + SHIFTED if k + SHIFTED < WORDS else k + SHIFTED - WORDS
        word = (state[k] & np.uint32(0x80000000)) | (state[following] & np.uint32(0x7FFFFFFF))
        state[k] = state[other] ^ (word >> np.uint32(1)) ^ (np.uint32(0x9908B0DF) * (word & np.uint32(1)))
    state[WORDS] = 0


@compiled
def next_word(state):
    """The next 32 random bits."""
    if state[WORDS] >= WORDS:
        renew(state)
    word = np.int64(state[state[WORDS]])
    state[WORDS] += 1
    word ^= word >> 11
    word ^= (word << 7) & 0x9D2C5680
    word ^= (word << 15) & 0xEFC60000
    return word ^ (word >> 18)


@compiled
def uniform(state):
    """rng.random()"""
    high, low = next_word(state) >> 5, next_word(state) >> 6
    return (high * 67108864.0 + low) / 9007199254740992.0


@compiled
def below(n, state):
    """rng.randint(0, n - 1); 0 < n < 2 ** 32."""
    shift = 32
    while n >> (32 - shift):
        shift -= 1
    number = next_word(state) >> shift
    while number >= n:
        number = next_word(state) >> shift
    return number


@compiled
def shuffle(values, state):
    """rng.shuffle(values)"""
    shift = 0  # Python draws as many bits as the number of values left has
    for last in range(len(values) - 1, 0, -1):
        while (last + 1) >> (31 - shift) == 0:
            shift += 1
        chosen = next_word(state) >> shift
        while chosen > last:
            chosen = next_word(state) >> shift
        values[last], values[chosen] = values[chosen], values[last]


@compiled
def draw_order(num_values, state):
    """Draws what shuffle draws for so many values."""
    shift = 0
    for last in range(num_values - 1, 0, -1):
        while (last + 1) >> (31 - shift) == 0:
            shift += 1
        while next_word(state) >> shift > last:
            pass
