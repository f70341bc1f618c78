"""Training steps of fairseq's own `Trainer`, in its environment: each line on standard input is answered by the seconds
that one step took, its batch included. Arguments: threads, then those of `fairseq-train`."""

import re
import sys
import time


def main(threads, *arguments):
    import torch
    from fairseq import options, tasks
    from fairseq.data.iterators import GroupedIterator
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq.logging import metrics
    from fairseq.trainer import Trainer

    torch.set_num_threads(int(threads))
    args = options.parse_args_and_arch(options.get_training_parser(), input_args=list(arguments))
    cfg = convert_namespace_to_omegaconf(args)
    task = tasks.setup_task(cfg.task)
    model, criterion = task.build_model(cfg.model), task.build_criterion(cfg.criterion)
    task.load_dataset("train")
    trainer = Trainer(cfg, task, model, criterion)
    epochs = trainer.get_train_iterator(epoch=1)

    def batches():
        while True:
            yield from GroupedIterator(epochs.next_epoch_itr(shuffle=True), cfg.optimization.update_freq[0])

    source = batches()
    unused = re.compile(r"(in_proj|out_proj|fc1|fc2)_(weight|bias)$")  # of its layers, which nothing reads in training
    size = sum(p.numel() for name, p in model.named_parameters() if not unused.search(name))
    print(f"parameters {size} torch {torch.__version__}", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        samples = next(source)
        with metrics.aggregate("train_inner"):
            trainer.train_step(samples)
        seconds = time.perf_counter() - start
        print(f"{seconds} {sum(len(s['target']) for s in samples)}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
