"""Step 5c: fine-tunes one BERT on several tasks together, with a classifier for each (paper, section 5.5).

    python run_classifier_multitask.py --task_name imdb yelp_p ag dbpedia --do_train --do_eval --do_lower_case \\
        --data_dir ./data_sets --vocab_file ./uncased_L-12_H-768_A-12/vocab.txt \\
        --bert_config_file ./uncased_L-12_H-768_A-12/bert_config.json \\
        --init_checkpoint ./uncased_L-12_H-768_A-12/bert_model.ckpt --max_seq_length 512 --trunc_medium 128 \\
        --train_batch_size 24 --learning_rate 2e-5 --num_train_epochs 4 --seed 42 --output_dir ./multitask

--data_dir is one folder for each task, in their order, or one that holds a folder by the name of each. An update takes a
batch of one task, drawn by the tasks' sizes; with --task_sampling fixed, an epoch is planned as the authors' is. Each task
is evaluated after each epoch, and its model (the shared encoder as it then is, and its classifier) kept in
OUTPUT_DIR/TASK/best and last. Fine-tuning on a task alone goes on from last, at a lower rate:

    python run_classifier_single_layer.py --task_name imdb --data_dir ./data_sets/imdb --init_checkpoint \\
        ./multitask/imdb/last --learning_rate 1e-5 ...

All else is as in run_classifier_single_layer.py and, with --discr, run_classifier_discriminative.py.
"""
import finetuning.command
from common.command_line import run
from finetuning.flags import make_parser
from run_classifier_discriminative import add_flags, rates_of


def main():
    parser = make_parser(__doc__, several_tasks=True)
    add_flags(parser.recipe, discr=False)
    finetuning.command.run(parser, rates_of)


if __name__ == "__main__":
    run(main)
