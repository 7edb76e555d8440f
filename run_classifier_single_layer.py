"""Step 5a: fine-tunes BERT for text classification: truncation x layers x pooling (paper, sections 5.3.1 to 5.3.3).

One GPU, several (one process each, started by itself), or the CPU:

    python run_classifier_single_layer.py --task_name imdb --do_train --do_eval --do_lower_case \\
        --data_dir ./IMDB_data/ --vocab_file ./uncased_L-12_H-768_A-12/vocab.txt \\
        --bert_config_file ./uncased_L-12_H-768_A-12/bert_config.json \\
        --init_checkpoint ./uncased_L-12_H-768_A-12/bert_model.ckpt --max_seq_length 512 --train_batch_size 24 \\
        --learning_rate 2e-5 --num_train_epochs 4 --output_dir ./imdb --seed 42 --layers 11 10 --trunc_medium -1

Several machines, --output_dir and what is read on a disk that they share (on each, with its own --node_rank):

    torchrun --nnodes 2 --node_rank 0 --nproc_per_node 4 --master_addr HOST --master_port 29500 \\
        run_classifier_single_layer.py ...

Predict with what a run left, no flag repeated:

    python run_classifier_single_layer.py --do_predict --predict_file texts.txt --init_checkpoint ./imdb/best \\
        --output_dir ./imdb
"""
import finetuning.command
from common.command_line import run
from finetuning.flags import make_parser


def main():
    finetuning.command.run(make_parser(__doc__))


if __name__ == "__main__":
    run(main)
