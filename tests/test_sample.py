"""What data/ ships: the sample, its vocabulary, the corpus and the tiny BERT are what their generators make."""
import collections
import csv
import importlib.util
import json
import pathlib
import re
import sys

import numpy as np
import pytest

import tasks
from common.command_line import UserError
from common.configuration import BertConfig

DATA = pathlib.Path(__file__).resolve().parent.parent / "data"


def call(monkeypatch, script, *arguments):
    """Runs the main() of a script in this process."""
    spec = importlib.util.spec_from_file_location(pathlib.Path(script).stem, script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
    module.main()
    return module


def read(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def train_and_test():
    return read(DATA / "sample" / "train.csv"), read(DATA / "sample" / "test.csv")


def test_the_generator_makes_the_committed_bytes(tmp_path, monkeypatch):
    call(monkeypatch, DATA / "make_sample.py", "--output_dir", tmp_path, "--vocab_file", tmp_path / "vocab.txt")
    for committed in ("sample/train.csv", "sample/test.csv", "tiny_bert/vocab.txt"):
        assert (tmp_path / pathlib.Path(committed).name).read_bytes() == (DATA / committed).read_bytes(), committed


def test_a_sample_elsewhere_has_its_vocabulary_beside_it_and_each_flag_acts(tmp_path, monkeypatch, capsys):
    committed = (DATA / "tiny_bert" / "vocab.txt").read_bytes()
    size = ["--num_train", 80, "--num_test", 4, "--vocab_size", 300]
    call(monkeypatch, DATA / "make_sample.py", *size, "--output_dir", tmp_path / "my sample")
    assert f"next: python generate_corpus_agnews.py --data_dir '{tmp_path}/my sample'" in capsys.readouterr().out
    first = tmp_path / "my sample"
    assert len((first / "vocab.txt").read_text(encoding="utf-8").splitlines()) == 300
    assert (len(read(first / "train.csv")), len(read(first / "test.csv"))) == (80, 4)
    assert (DATA / "tiny_bert" / "vocab.txt").read_bytes() == committed
    call(monkeypatch, DATA / "make_sample.py", *size, "--seed", 7, "--output_dir", tmp_path / "other")
    assert (tmp_path / "other" / "train.csv").read_bytes() != (first / "train.csv").read_bytes()


def test_damaged_word_lists_are_refused_in_one_line_that_names_them(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("make_sample", DATA / "make_sample.py")
    make_sample = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_sample)
    monkeypatch.setattr(make_sample, "WORDS", str(tmp_path / "words.json"))
    lists = json.loads((DATA / "sample_words.json").read_text(encoding="utf-8"))
    without_common = {beat: words for beat, words in lists["world"].items() if beat != "common"}
    for damaged, words in (({}, "no world"), ([], r"\[\] where dict"),
                           (lists | {"world": without_common}, "world has no common"),
                           (lists | {"shared": {"agents": 1}}, "shared, agents: 1 where str")):
        (tmp_path / "words.json").write_text(json.dumps(damaged))
        with pytest.raises(UserError, match=f"words.json.*{words}"):
            make_sample.read_words()


def test_the_sample_is_written_in_each_task_s_format(tmp_path, monkeypatch):
    call(monkeypatch, DATA / "make_task_samples.py", "--output_dir", tmp_path, "--num_train", 40, "--num_test", 48)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(tasks.TASKS)
    for task in tasks.TASKS.values():
        for split, count in (("train", 40), ("test", 48)):
            texts, labels = tasks.read_examples(task, tmp_path / task.name, split)
            assert len(texts) == count and len(set(texts)) > count / 2
            assert len(set(labels)) == len(task.labels), task.name


@pytest.mark.parametrize("flag, words", [
    (["--num_train", 1601], "--num_train 1601: the sample has 1600 rows"),
    (["--num_test", 401], "--num_test 401: the sample has 400 rows")])
def test_more_rows_than_the_sample_has_are_refused(tmp_path, monkeypatch, flag, words):
    with pytest.raises(UserError, match=words):
        call(monkeypatch, DATA / "make_task_samples.py", "--output_dir", tmp_path, *flag)


@pytest.mark.parametrize("script, flags, words", [
    ("make_sample.py", ["--output_dir", "file"], "--output_dir: {}/file is a file, a folder is needed"),
    ("make_sample.py", ["--output_dir", "new", "--vocab_file", "folder"],
     "--vocab_file: folder is a folder, a file name is needed"),
    ("make_sample.py", ["--output_dir", "new", "--general_file", "folder"],
     "--general_file: folder is a folder, a file name is needed"),
    ("make_tiny_bert.py", ["--output_dir", "file/in_it"], "--output_dir: {}/file is a file, a folder is needed"),
    ("make_task_samples.py", ["--output_dir", "file"], "--output_dir: {}/file is a file, a folder is needed")])
def test_a_file_where_a_folder_belongs_and_the_reverse_are_refused(tmp_path, monkeypatch, script, flags, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError) as refused:
        call(monkeypatch, DATA / script, *flags)
    assert words.format(tmp_path) in str(refused.value)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}


def test_the_corpus_is_what_generate_corpus_agnews_makes_of_it(tmp_path, monkeypatch):
    script = DATA.parent / "generate_corpus_agnews.py"
    call(monkeypatch, script, "--data_dir", DATA / "sample", "--output_dir", tmp_path)
    assert (tmp_path / "AGnews_corpus_test.txt").read_bytes() == (DATA / "agnews_corpus_test.txt").read_bytes()


def test_the_sample_has_ag_news_format_and_noise(train_and_test):
    for rows, expected in zip(train_and_test, (1600, 400)):
        assert len(rows) == expected and {len(row) for row in rows} == {3}
        assert collections.Counter(row[0] for row in rows) == {label: expected // 4 for label in "1234"}
    for name in ("train.csv", "test.csv"):
        lines = (DATA / "sample" / name).read_text(encoding="utf-8").splitlines()
        assert all(line.startswith('"') and line.endswith('"') and line.count('"') % 2 == 0 for line in lines)
    text = "\n".join(" ".join(row) for row in train_and_test[0])
    for noise in (" #39;", " quot;", "\\$", "(AP)", "Reuters - ", "&lt;b&gt;...&lt;/b&gt;"):
        assert text.count(noise) >= 10, noise
    assert len({row[2] for row in train_and_test[0] + train_and_test[1]}) > 1990, "stories are repeated"


def test_the_words_tell_the_topic_often_and_not_always(train_and_test):
    """Naive Bayes of the words, the plainest classifier: far above chance (25%), below 95%."""
    train, test = [[(int(label) - 1, f"{title} {text}".lower().replace(".", " ").replace(",", " ").split())
                    for label, title, text in rows] for rows in train_and_test]
    counts = collections.defaultdict(lambda: np.full(4, 0.5))
    for label, words in train:
        for word in words:
            counts[word][label] += 1
    totals = sum(counts.values())
    predicted = [int(np.argmax(sum(np.log(counts[word] / totals) for word in words if word in counts)))
                 for _, words in test]
    accuracy = np.mean([prediction == label for prediction, (label, _) in zip(predicted, test)])
    assert 0.75 < accuracy < 0.95


def test_words_of_a_topic_keep_company_and_the_general_stories_lack_them(train_and_test, tmp_path, monkeypatch):
    """What further pre-training has to learn from: counts of the stories without their labels set a topic's words beside
    others of the topic, whatever their slots. The tiny BERT has not met these words."""
    general_file = tmp_path / "general.txt"
    make_sample = call(monkeypatch, DATA / "make_sample.py", "--output_dir", tmp_path, "--general_file", general_file)
    lists, topic_of = make_sample.read_words(), {}
    for topic in (*make_sample.TOPICS, "general", "shared"):
        slots = [lists[topic]] if topic == "shared" else [slots for beat, slots in lists[topic].items() if beat != "common"]
        for word in " ".join(entry for slot in slots for entries in slot.values() for entry in entries).lower().split():
            topic_of.setdefault(word, set()).add(topic)
    own = {word: min(topics) for word, topics in topic_of.items() if len(topics) == 1 and topics <= set(make_sample.TOPICS)}

    stories = [set(re.findall("[a-z]+", f"{title} {text}".lower())) for _, title, text in train_and_test[0]]
    counts = collections.Counter(word for story in stories for word in story & own.keys())
    words = sorted(word for word, count in counts.items() if count >= 5)
    seen = np.array([[word in story for word in words] for story in stories], float)
    together = seen.T @ seen / np.outer(seen.sum(0), seen.sum(0))
    np.fill_diagonal(together, 0)
    agree = np.mean([own[words[other]] == own[word] for word, row in zip(words, together) for other in np.argsort(row)[-5:]])
    assert len(words) > 400 and agree > 0.8

    general = set(re.findall("[a-z]+", general_file.read_text(encoding="utf-8").lower()))
    assert len(general & own.keys()) < 0.02 * len(own)


def test_the_tiny_bert_has_learnt_the_general_stories(tmp_path, monkeypatch):
    """The committed weights, below 1 MB, tell a masked word of stories that they have not seen far better than chance."""
    import torch

    from finetuning.weights import read_weights
    from tokenization import FullTokenizer
    transformers = pytest.importorskip("transformers")
    folder = DATA / "tiny_bert"
    assert (folder / "model.safetensors").stat().st_size < 1_000_000
    config = BertConfig.from_json_file(str(folder / "bert_config.json"))
    assert {value.dtype for value in read_weights(str(folder), config, "tiny BERT").values()} == {torch.float16}
    call(monkeypatch, DATA / "make_sample.py", "--num_train", 80, "--num_test", 4, "--vocab_size", 300, "--seed", 7,
         "--output_dir", tmp_path, "--general_file", tmp_path / "general.txt")
    tokenizer = FullTokenizer(str(folder / "vocab.txt"), do_lower_case=True)
    vocab = tokenizer.vocab
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict() | {"model_type": "bert"}))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    model = transformers.BertForPreTraining.from_pretrained(tmp_path, dtype=torch.float32).eval()
    right = []
    for story in (tmp_path / "general.txt").read_text(encoding="utf-8").split("\n\n")[:100]:
        ids = tokenizer.convert_tokens_to_ids(["[CLS]", *tokenizer.tokenize(story)[:60], "[SEP]"])
        for place in range(3, len(ids) - 1, 7):
            masked = torch.tensor([ids[:place] + [vocab["[MASK]"]] + ids[place + 1:]])
            with torch.no_grad():
                right.append(model(masked).prediction_logits[0, place].argmax().item() == ids[place])
    assert len(right) > 300 and np.mean(right) > 0.5


def test_sentences_of_a_story_share_words(train_and_test):
    """What next-sentence prediction learns from: sentences of one story have more words in common than of two."""
    stories = [[set(sentence.lower().split()) for sentence in row[2].split(". ")] for row in train_and_test[0]]
    pairs = [(story[0], story[1], other[-1]) for story, other in zip(stories, stories[1:]) if len(story) > 1]
    own, others = (np.mean([len((first & second) - {"the", "and"}) for first, second in
                            ((a, b) if own else (a, c) for a, b, c in pairs)]) for own in (True, False))
    assert own > 1.5 * others


def test_the_vocabulary_is_berts_and_covers_the_sample(train_and_test):
    from tokenization import FullTokenizer
    tokens = (DATA / "tiny_bert" / "vocab.txt").read_text(encoding="utf-8").splitlines()
    config = BertConfig.from_json_file(str(DATA / "tiny_bert" / "bert_config.json"))
    assert len(tokens) == len(set(tokens)) == config.vocab_size == 3000
    assert tokens[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = FullTokenizer(str(DATA / "tiny_bert" / "vocab.txt"), do_lower_case=True)
    pieces = [piece for rows in train_and_test for row in rows for piece in tokenizer.tokenize(f"{row[1]} - {row[2]}")]
    assert "[UNK]" not in pieces
    assert np.mean([piece.startswith("##") for piece in pieces]) < 0.1  # BERT's vocabulary splits rare words, too


def test_a_vocabulary_that_the_stories_cannot_fill_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="20 stories give .* tokens; ask for fewer tokens, or for more stories"):
        call(monkeypatch, DATA / "make_sample.py", "--num_train", 20, "--num_test", 4,
             "--output_dir", tmp_path / "sample", "--vocab_file", tmp_path / "vocab.txt")
    assert not (tmp_path / "sample").exists()


def test_make_tiny_bert_writes_googles_folder_the_same_each_time(tmp_path, monkeypatch, capsys):
    from pretraining.checkpoints import fitting_values, read_checkpoint
    from pretraining.modeling_tf import variable_shapes
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    for folder, seed in ((first, 0), (again, 0), (other, 1)):
        call(monkeypatch, DATA / "make_tiny_bert.py", "--output_dir", folder, "--seed", seed)
    assert sorted(path.name for path in first.iterdir()) == ["bert_config.json", "bert_model.ckpt.data-00000-of-00001",
                                                             "bert_model.ckpt.index", "vocab.txt"]
    for name in ("bert_config.json", "vocab.txt"):
        assert (first / name).read_bytes() == (DATA / "tiny_bert" / name).read_bytes()
    config = BertConfig.from_json_file(str(first / "bert_config.json"))
    values, same, different = (fitting_values(config, read_checkpoint(str(folder / "bert_model.ckpt")), "")
                               for folder in (first, again, other))
    assert values.keys() == variable_shapes(config).keys()
    assert all(np.array_equal(values[name], same[name]) for name in values)
    kernel = "bert/encoder/layer_0/attention/self/query/kernel"
    assert not np.array_equal(values[kernel], different[kernel])
    assert abs(values[kernel].std() / config.initializer_range - 0.88) < 0.05  # a normal cut at two deviations
    assert 200_000 < sum(value.size for value in values.values()) < 1_000_000
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict() | {"hidden_size": 32, "num_hidden_layers": 1}))
    call(monkeypatch, DATA / "make_tiny_bert.py", "--output_dir", first, "--bert_config_file", tmp_path / "config.json")
    smaller = read_checkpoint(str(first / "bert_model.ckpt"))
    assert smaller[kernel].shape == (32, 32) and "bert/encoder/layer_1/output/dense/kernel" not in smaller


def test_make_tiny_bert_writes_the_tokens_of_a_tokenizer_json(tmp_path, monkeypatch):
    tokens = (DATA / "tiny_bert/vocab.txt").read_text(encoding="utf-8").splitlines()
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordPiece", "vocab": {
        token: index for index, token in enumerate(tokens)}}}))
    call(monkeypatch, DATA / "make_tiny_bert.py", "--output_dir", tmp_path / "out", "--vocab_file", tmp_path / "tokenizer.json")
    assert (tmp_path / "out/vocab.txt").read_text(encoding="utf-8").splitlines() == tokens


def test_make_tiny_bert_refuses_a_vocabulary_of_another_size(tmp_path, monkeypatch):
    (tmp_path / "vocab.txt").write_text("".join(f"{index}\n" for index in range(3001)))
    with pytest.raises(UserError, match="has 3001 tokens, the model's vocab_size is 3000"):
        call(monkeypatch, DATA / "make_tiny_bert.py", "--output_dir", tmp_path / "out",
             "--vocab_file", tmp_path / "vocab.txt")
    assert not (tmp_path / "out").exists()
