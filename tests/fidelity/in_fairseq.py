"""What fairseq computes, in its own environment: `python in_fairseq.py DATA OUT.npz CHECKPOINT [NAME=VALUE ...]`.

Of a masked language model the masked samples (val, and train in two epochs) and the logits and loss of the first val
samples; of an adaptive language model the log-probabilities and the loss of given tokens.
"""

import sys

import numpy as np
import torch
from fairseq import checkpoint_utils


def main(data, out, checkpoint, *overrides):
    overrides = dict(o.split("=") for o in overrides)
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task(
        [checkpoint], arg_overrides={"data": data, **overrides}
    )
    model.eval()
    found = masked(model, task) if type(task).__name__ == "MaskedLMTask" else adaptive(model, task)
    np.savez_compressed(out, **found)


@torch.no_grad()
def masked(model, task):
    found = {}
    for split in ("train", "valid"):
        task.load_dataset(split)
        inputs = task.datasets[split].dataset.defn  # under SortDataset: padded sources and targets
        for epoch in (1, 2):
            task.datasets[split].set_epoch(epoch)
            rows = [(inputs["net_input.src_tokens"][i], inputs["target"][i]) for i in range(len(task.datasets[split]))]
            rows = [pair for pair in rows if len(pair[0]) <= model.max_positions()]  # as fairseq leaves them out
            width = max(len(source) for source, _ in rows)
            for number, name in enumerate(("source", "target")):
                padded = np.ones((len(rows), width), np.int64)
                for row, pair in zip(padded, rows, strict=True):
                    row[: len(pair[number])] = pair[number]
                found[f"{split}_{epoch}_{name}"] = padded
    source = torch.from_numpy(found["valid_1_source"])
    target = torch.from_numpy(found["valid_1_target"])
    logits = torch.cat([model(chunk)[0] for chunk in source.split(8)])
    counted = target != 1
    loss = torch.nn.functional.cross_entropy(logits[counted], target[counted], reduction="sum")
    return {**found, "logits": logits[:4].numpy(), "loss": loss.double() / counted.sum(), "targets": counted.sum()}


@torch.no_grad()
def adaptive(model, task):
    task.load_dataset("valid")
    dataset = task.datasets["valid"]
    source = torch.stack([dataset[i]["source"] for i in range(4)])
    target = torch.stack([dataset[i]["target"] for i in range(4)])
    softmax = model.decoder.adaptive_softmax
    features = model(source)[0]
    logits = softmax.get_log_prob(features, None)
    return {"source": source.numpy(), "target": target.numpy(), "log_probabilities": logits.numpy()}


main(*sys.argv[1:])
