"""Prints the README's tables of every flag, from the scripts themselves: python scripts/flags_table.py

tests/test_readme.py holds the README to this output. The column "paper" is the section or table that a flag is about.
"""
import importlib
import os
import re
import sys
import unittest.mock

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SCRIPTS = ("download", "generate_corpus_agnews", "generate_corpus", "create_pretraining_data", "run_pretraining",
           "convert_tf_checkpoint_to_pytorch", "run_classifier_single_layer", "run_classifier_discriminative",
           "run_classifier_multitask")
PAPER = {
    "trunc_medium": "5.3.1, Table 2", "max_seq_length": "5.3.1", "layers": "5.3.2, Table 3",
    "layer_pooling": "5.3.2, Table 3",
    "learning_rate": "5.2; 5.3.3, Figure 2", "num_train_epochs": "5.2", "train_batch_size": "5.2",
    "warmup_proportion": "5.2",
    "layer_learning_rate": "5.3.4, Table 4", "layer_learning_rate_decay": "5.3.4, Table 4", "discr": "5.3.4",
    "embeddings_learning_rate": "5.3.4", "num_datas": "5.6, Figure 4", "num_train_steps": "5.4.1, Figure 3",
    "num_warmup_steps": "5.2", "input_file": "5.4", "init_checkpoint": "5.4", "frozen_bert": "5.4.3, Table 6",
    "spacy_model": "5.2", "language": "5.2", "hierarchical": "5.3.1, Table 2", "max_fractions": "5.3.1",
    "classifier": "5.4.3, Table 6", "task_sampling_alpha": "5.5, Table 7",
}


class Captured(Exception):
    """Carries a script's parser out of its main(), before any work."""


def parser_of(script):
    """The ArgumentParser that `script` (a module's name) makes."""
    import command_line

    def capture(parser, *arguments, **options):
        raise Captured(parser)
    with unittest.mock.patch.object(command_line.ArgumentParser, "parse_args", capture):
        try:
            importlib.import_module(script).main()
        except Captured as captured:
            return captured.args[0]
    raise AssertionError(f"{script} parses no flags")


def rows(parser):
    """(flags, help, paper's section) of each flag of a parser, in order."""
    for action in parser._actions:
        if action.dest != "help":
            flags = ", ".join(f"`{flag}`" for flag in action.option_strings or [action.metavar])
            yield flags, re.sub(r"\s+", " ", action.help).replace("|", "\\|"), PAPER.get(action.dest, "")


def table(heading, entries):
    lines = [f"#### {heading}", "", "| flag | meaning | paper |", "|---|---|---|"]
    return "\n".join(lines + [f"| {flags} | {words} | {paper} |" for flags, words, paper in entries]) + "\n"


def tables():
    """The Markdown of all tables; flags that a fine-tuning script shares with an earlier one stand there once."""
    sys.path[:0] = [ROOT, os.path.join(ROOT, "data")]
    parsers = {script: list(rows(parser_of(script))) for script in SCRIPTS}
    single, discriminative, multitask = SCRIPTS[-3:]
    parsers[multitask] = [row for row in parsers[multitask] if row not in parsers[single] + parsers[discriminative]]
    parsers[discriminative] = [row for row in parsers[discriminative] if row not in parsers[single]]
    headings = {"download": "data/download.py", single: f"{single}.py and {discriminative}.py",
                discriminative: f"{discriminative}.py alone", multitask: f"{multitask}.py alone; all else as above"}
    return "\n".join(table(headings.get(script, f"{script}.py"), entries) for script, entries in parsers.items())


if __name__ == "__main__":
    print(tables(), end="")
