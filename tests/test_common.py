"""common/: what a configuration may say, and files that are whole or absent."""
import json
import os

import pytest

from common import command_line, files, precision
from common.command_line import UserError
from common.configuration import MAX_LAYERS, BertConfig
from finetuning.flags import make_parser

# By the shapes that their authors state: the largest BERT of Google's, the largest that is a BERT in all but its vocabulary,
# and the largest encoder alike.
PUBLISHED = {"BERT-large": (30_522, 1024, 24, 16, 4096), "MuRIL-large": (197_285, 1024, 24, 16, 4096),
             "DeBERTa-v2-xxlarge": (128_100, 1536, 48, 24, 6144)}
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_published_is_within_the_limits(name):
    BertConfig(*PUBLISHED[name]).check("here")


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("key", ["vocab_size", "intermediate_size", "max_position_embeddings"])
def test_a_slip_that_would_take_gigabytes_is_refused_and_the_message_says_what_is_usual(name, key):
    config = BertConfig(*PUBLISHED[name])
    setattr(config, key, 10 ** 8)
    with pytest.raises(UserError, match=r"^here: these sizes make [\d,]{13,} parameters, at most 2,000,000,000 are possible "
                                        r"\(BERT-large has 335 million\); look for a digit too many$"):
        config.check("here")


def test_a_slip_in_a_tiny_model_is_refused():
    """One layer of width 16 would take 13 GB."""
    with pytest.raises(UserError, match="these sizes make 3,3.*look for a digit too many"):
        BertConfig(2000, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=10 ** 8).check("here")
    with pytest.raises(UserError, match=f"num_hidden_layers is 100000000, at most {MAX_LAYERS:,} are possible"):
        BertConfig(1, 1, 10 ** 8, 1, 1).check("here")


def test_a_size_at_the_limit_is_allowed_and_one_more_is_not():
    config = BertConfig(1, hidden_size=1, num_hidden_layers=1, num_attention_heads=1, intermediate_size=1)
    config.vocab_size += 2_000_000_000 - config.num_parameters()
    config.check("here")
    config.vocab_size += 1
    with pytest.raises(UserError, match="these sizes make 2,000,000,001 parameters"):
        config.check("here")


def test_parameters_are_those_of_the_encoder():
    """With the pooler's, what bert-base-uncased and bert-large-uncased are known to have."""
    assert BertConfig(30_522).num_parameters() + 768 * 769 == 109_482_240
    assert BertConfig(*PUBLISHED["BERT-large"]).num_parameters() + 1024 * 1025 == 335_141_888


def test_a_file_that_is_renamed_leaves_the_temporary_name_to_the_next_command(tmp_path, monkeypatch):
    """Which may take it between the renaming and the end of the block."""
    replace = os.replace

    def replace_and_let_another_begin(source, target):
        replace(source, target)
        (tmp_path / ".it.tmp").write_text("the next command's")
    monkeypatch.setattr(files.os, "replace", replace_and_let_another_begin)
    with files.atomic_write(tmp_path / "it") as file:
        file.write("first")
    assert (tmp_path / "it").read_text() == "first" and (tmp_path / ".it.tmp").read_text() == "the next command's"


@pytest.mark.parametrize("module, name", [(files.fcntl, "flock"), (files.os, "fstat")])
def test_a_lock_is_of_the_file_that_has_the_name(tmp_path, monkeypatch, module, name):
    """Its holder may remove it at any moment between a waiting command's opening and locking it."""
    path, call, removed = tmp_path / ".lock", getattr(module, name), []

    def remove_and_call(*arguments):
        if not removed:
            removed.append(path.unlink())
        return call(*arguments)
    monkeypatch.setattr(module, name, remove_and_call)
    flags = os.O_RDWR | os.O_CREAT
    with files.locked(path, "first", flags):
        assert removed
        with pytest.raises(UserError, match="second"):
            with files.locked(path, "second", flags):
                raise AssertionError("two hold it")


@pytest.mark.parametrize("patterns", ["{0}/*.csv,{0}/a.csv", "{0}/b.csv,{0}/link"])
def test_a_file_is_named_once(tmp_path, patterns):
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text("x")
    (tmp_path / "link").symlink_to("b.csv")
    with pytest.raises(UserError, match=r"--input_file: .*/[ab]\.csv is named twice"):
        files.expand_files(patterns.format(tmp_path), "--input_file")
    assert len(files.expand_files(f"{tmp_path}/*.csv", "--input_file")) == 2


@pytest.mark.parametrize("values", [{"model_type": ["bert"]}, {"architectures": 3}, {"architectures": "BertForMaskedLM"}])
def test_a_damaged_configuration_is_one_line(tmp_path, values):
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 100} | values))
    with pytest.raises(UserError, match=f"config.json, {min(values)}: .* is needed; the file is damaged"):
        BertConfig.from_json_file(tmp_path / "config.json")


def test_a_write_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with files.atomic_write(tmp_path / "it") as file:
            file.write("half")
            raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_remove_takes_files_folders_and_links_and_what_is_not_there(tmp_path):
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "kept").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("kept")
    (tmp_path / "dangling").symlink_to("nothing")
    for name in ("folder", "file", "link", "dangling", "absent"):
        files.remove(tmp_path / name)
    assert os.listdir(tmp_path) == ["kept"]


@pytest.fixture
def gpu(tmp_path, monkeypatch):
    """A machine whose driver shows a GPU."""
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(command_line, "NVIDIA_DEVICES", str(tmp_path / "nvidia[0-9]*"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_gpu_that_a_framework_does_not_see_is_said_loudly_by_both(gpu, capsys, monkeypatch, tmp_path):
    from finetuning import command
    from pretraining import devices
    devices.make_strategy("one", devices.Role([], None, True), devices.Tpu(), 1)
    assert "*** WARNING: this machine has an NVIDIA GPU, but TensorFlow sees none" in capsys.readouterr().err
    parser = make_parser("")
    flags = ["--do_predict", "--predict_file", str(tmp_path), "--init_checkpoint", str(tmp_path), "--output_dir", str(tmp_path)]
    for more, warned in (([], True), (["--no_cuda"], False)):
        with pytest.raises(UserError, match="classifier.json"):
            monkeypatch.setattr("sys.argv", ["script", *flags, *more])
            command.run(parser)
        assert ("but PyTorch sees none" in capsys.readouterr().err) == warned


def test_it_is_not_said_where_there_is_none_or_it_is_hidden_on_purpose(gpu, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    command_line.warn_of_an_idle_gpu("PyTorch", "")
    monkeypatch.setattr(command_line, "NVIDIA_DEVICES", "/nowhere/nvidia[0-9]*")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    command_line.warn_of_an_idle_gpu("PyTorch", "")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("text, found", [
    ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16 gfni\n\nprocessor\t: 1\nflags\t\t: fpu\n", "avx512_bf16"),
    ("flags\t\t: fpu avx512_bf16 amx_tile amx_bf16\n", "amx_bf16"), ("flags\t\t: fpu avx2 avx512f\n", None),
    ("Features\t: fp asimd\n", None), (None, None)])
def test_a_processor_multiplies_bfloat16_by_the_flags_of_the_system(tmp_path, monkeypatch, text, found):
    """And does not where the system has no such file."""
    monkeypatch.setattr(precision, "CPUINFO", tmp_path / "cpuinfo")
    if text is not None:
        precision.CPUINFO.write_text(text)
    assert precision.bf16_instructions() == found
