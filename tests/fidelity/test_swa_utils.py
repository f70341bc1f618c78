"""Our averagers against torch.optim.swa_utils on a network that is really trained."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lawa_exp.averaging import EmaSettings, SwaSettings, build_averager
from lawa_exp.averaging.tensors import averaged_names, live_tensors
from lawa_exp.averaging.window import Window


def test_swa_and_ema_equal_torchs_to_rounding():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    swa, ema = AveragedModel(model), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.97))
    names = averaged_names(model)
    ours_swa = build_averager(SwaSettings(every=1, start=0), names, Window())
    ours_ema = build_averager(EmaSettings(decay=0.97, every=1, start=0, warmup=False), names, Window())
    x, y = torch.randn(64, 8), torch.randn(64, 1)
    start = {n: t.clone() for n, t in live_tensors(model).items()}
    for step in range(1, 101):
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        swa.update_parameters(model)
        ema.update_parameters(model)
        ours_swa.update(step, live_tensors(model))
        ours_ema.update(step, live_tensors(model))
    for ours, theirs in ((ours_swa, swa), (ours_ema, ema)):
        average = ours.average()
        for name, parameter in theirs.module.named_parameters():
            torch.testing.assert_close(average[name], parameter.detach(), rtol=1e-5, atol=1e-6)
            assert not torch.equal(average[name], start[name])
        # Buffers: ours are the latest live ones. torch's with use_buffers=False keeps the copy made at the start.
        assert torch.equal(average["1.running_mean"], model[1].running_mean)
        assert average["1.num_batches_tracked"].item() == 100
