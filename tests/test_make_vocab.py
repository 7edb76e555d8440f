"""data/make_vocab.py: a vocabulary in Google's order that fits what tokenization.py makes of the texts."""
import pytest

from tokenization import FullTokenizer

CORPUS = "The Café's naïve owner:\n\tunhappy, unhappier\u0085 UNHAPPIEST (résumé)\n\nA café in 東京 re-opened; owners owned it.\n"


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "corpus.txt").write_text(CORPUS, encoding="utf-8")
    return tmp_path / "corpus.txt"


@pytest.mark.parametrize("lower", [True, False])
def test_no_word_of_the_corpus_is_unknown_and_the_order_is_google_s(corpus, script, lower):
    flags = ["--input_file", corpus, "--vocab_size", 180, "--min_frequency", 1, f"--do_lower_case={lower}"]
    for name in ("a", "b"):
        done = script("data/make_vocab.py", *flags, "--output_file", corpus.with_name(name) / "vocab.txt")
        assert done.returncode == 0, done.stderr
    tokens = (corpus.with_name("a") / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert (corpus.with_name("b") / "vocab.txt").read_text(encoding="utf-8").splitlines() == tokens
    assert len(tokens) == len(set(tokens)) == 180
    assert tokens[0] == "[PAD]" and tokens[99] == "[unused98]" and tokens[100:104] == ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [token for token in tokens[104:] if len(token) == 1]
    assert tokens[104:104 + len(letters)] == sorted(letters) and "東" in letters and "##東" not in tokens
    assert ("é" in letters, "T" in letters) == (not lower, not lower)
    tokenizer = FullTokenizer(corpus.with_name("a") / "vocab.txt", do_lower_case=lower)
    assert tokenizer.unk_id not in tokenizer.encode_batch([CORPUS])[0]
    assert "owne" in "".join(tokenizer.tokenize("owner")[:1]) or len(tokenizer.tokenize("owner")) < 5  # pieces were merged


def test_rare_characters_are_left_out(corpus, script):
    done = script("data/make_vocab.py", "--input_file", corpus, "--vocab_size", 140, "--num_unused", 0,
                  "--output_file", corpus.with_name("vocab.txt"))
    assert "the texts give" in done.stderr and "ask for fewer tokens" in done.stderr
    size = int(done.stderr.split("the texts give ")[1].split()[0])
    done = script("data/make_vocab.py", "--input_file", corpus, "--vocab_size", size, "--num_unused", 0,
                  "--output_file", corpus.with_name("vocab.txt"))
    tokens = corpus.with_name("vocab.txt").read_text(encoding="utf-8").splitlines()
    assert tokens[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] and "東" not in tokens and "o" in tokens


@pytest.mark.parametrize("flags, words", [
    (["--vocab_size", 120], "--vocab_size 120: "), (["--vocab_size", 5000], "--vocab_size 5000: the texts give"),
    (["--vocab_size", 4], "--vocab_size"), (["--input_file", "nothing.txt"], "--input_file: there is no file nothing.txt")])
def test_a_wrong_setting_is_refused_in_a_line_and_writes_nothing(corpus, refused, flags, words):
    output = corpus.with_name("vocab.txt")
    refused("data/make_vocab.py", "--input_file", corpus, "--output_file", output, *flags, words=words)
    assert not output.exists()


def test_texts_are_not_written_over(corpus, refused):
    refused("data/make_vocab.py", "--input_file", corpus.with_name("*.txt"), "--vocab_size", 180, "--min_frequency", 1,
            "--output_file", corpus, words="corpus.txt is also one of --input_file")
    assert corpus.read_text(encoding="utf-8") == CORPUS
