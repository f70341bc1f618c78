"""Command lines with one mistake each, by command; words are split as a shell does. See `place` for what they name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

SMALL = [
    *("dataset=pydocs", "model.layers=1", "model.width=16", "model.heads=2", "model.context=32", "batch.size=4"),
    *("steps=30", "avg=lawa", "k=2", "spacing=10", "evaluate.every=10", "evaluate.samples=8", "save.every=15"),
    *("trajectory.every=10", "trainer.threads=1", "lr.warmup_steps=5"),
]
LONG = "x" * 300
SWEEP = '{"command": "x", "entries": [{"overrides": ["seed=0"], "run_dir": "RUN", "steps": 30, "averages": []}]}'
BUDGETS = ("steps", "epochs", "tokens", "samples")

# Where a path is expected, of every command: none of these is a run, a checkpoint, a sweep or a place to write to.
NOWHERE = ["missing", "file.txt", "", "empty", "loop1", "dangling", "fifo", "/dev/null", "/dev/zero", LONG, "a\nb"]
PLACES = ["file.txt/x", "/proc/x", "loop1", "", "fifo", "/dev/null", LONG]

TRAIN = """
steps=10 epochs=1 | steps=null | steps=10 tokens=100 samples=5 | avg=none averagers.lawa.k=3 | avg=foo | avg=[lawa,foo]
avg=[lawa | -m run_dir=x | init.step=5 | init.from=missing | init.from=file.txt | init.from=run init.step=33
init.from=run init.optimizer=foo | init.from=ckpts | init.from=ckpts/ckpt_10.safetensors init.optimizer=keep
init.from=ckpts/ckpt_10.safetensors model.width=32 | init.from=stable | init.from=loop1 | init.from=fifo
init.from=empty | init.from=/dev/zero | init.from=hf_fifo init.optimizer=reset | init.from=hf_out init.optimizer=reset
dataset.path=5 dataset=text | dataset.path=[a] dataset=text | dataset.path={a:1} dataset=text
dataset.path=true dataset=text | dataset.path=nan dataset=text | init.from=5 | init.from=[a] | init.from=true
dataset=text dataset.path=file.txt dataset.tokenizer_path=5 dataset.tokenizer=gpt2 | init.from='' | teacher.from=''
dataset=text dataset.path='' | run_dir='' | run_dir= | runs_root= run_dir=null | runs_root='' run_dir=null
feedback=lookahead optimizer=schedule_free | feedback=foo | feedback.every=5 | feedback=lookahead feedback.every=0
lr.horizon=0 | lr.horizon=-5 | lr.warmup_steps=150%x | lr.warmup_steps=-5 | lr=wsd lr.decay_steps=200%
lr=wsd lr.decay_steps=-1 | lr=step lr.at=[5,3] | lr=foo | batch=ramp batch.size=4 batch.over=0
batch=steps batch.at=[3] | batch.norm_group=3 | trainer.micro_batch=3 | trainer=foo | scaling=sqrt scaling.base_batch=0
dataset=text | dataset=text dataset.path=missing | dataset=text dataset.path=empty | dataset=text dataset.path=bin.dat
dataset=text dataset.path=/dev/null | dataset=text dataset.path=/dev/zero | dataset=text dataset.path=emptyfile
dataset=text dataset.path=fifo | dataset=text dataset.path=loop1
dataset=text dataset.path=file.txt dataset.tokenizer=foo
dataset=text dataset.path=file.txt dataset.tokenizer=gpt2 dataset.tokenizer_path=missing model.vocab_size=50257
dataset=tokens dataset.path=missing | dataset=tokens dataset.path=empty | dataset=tokens dataset.path=file.txt
dataset=foo | dataset=digits | model=resnet20 | model=custom | model=custom model.builder=nope:x
model=custom model.builder=os | model=custom model.builder=os:path | model=custom model.builder=os:nope
model=custom model.builder=torch.nn:Linear | model=custom model.builder=: | model=custom model.builder=a:b:c
model=custom model.builder=torch.nn:Embedding model.args=5 | experiment=foo | nokey=1 | +x=1 | ~lr | ~averagers
~averagers.lawa.k | ~steps | ++a.b.c=1 | --config-dir /nonexistent | --config-name foo | --cfg foo | --foo | -x | foo
=5 | lr.peak | lr.peak==5 | lr.peak='${oc.env:NOPE_NOT_THERE}' | lr.peak='${nope}' | lr.peak='${lr.peak}' | k=1,2
seed='range(1,3)' | k=[1,2 | model.name=a/../../b | model.name=../../escape | model.name= | model.name=''
lr=null | optimizer=null | optimizer=[] | model=null | model=[] | ~optimizer | ~model | model=gpt_tiny,lenet
model={a:1} | averagers=5 | averagers={lawa:5} | averagers=[1] | trainer=null | evaluate=null | save.keep=5
save.keep=[abc] | save.keep=[0] | save=5 | init=5 | dataset=null | logger=foo | logger=wandb loggers.wandb.mode=foo
logger=wandb loggers.wandb.finish_timeout=-1 | logger=wandb loggers.wandb.project=
logger=wandb loggers.wandb.project='' | logger=csv loggers.csv.finish_timeout=nan | loggers.wandb.mode=off
fault=rate fault.at=-1 | fault=rate fault.factor=nan | fault=rate fault.length=0 | fault=foo
trajectory.window=disk trajectory.keep=2 | trajectory.window=disk trajectory.every=7 spacing=10
run_dir=file.txt | run_dir=full | run_dir=loop1 | run_dir=dangling/x | run_dir=/dev/null
run_dir=/dev/null/x | run_dir=/proc/x | run_dir=file.txt/x | run_dir=run lr.peak=0.1 | run_dir=[a] | run_dir={a:1}
run_dir=true | run_dir=fifo | runs_root=file.txt run_dir=null | runs_root=/proc run_dir=null
runs_root=null run_dir=null | -m sweep=../../escape runs_root=rr | -m sweep=a/b runs_root=rr | -m sweep= runs_root=rr
-m sweep=.. runs_root=rr | -m sweep=. runs_root=rr | -m runs_root=file.txt | -m seed=abc,1 runs_root=rr
-m steps=1,2 epochs=1 runs_root=rr | -m k= runs_root=rr | -m lr.peak=1e-3,abc runs_root=rr | -m hydra/launcher=foo
hydra/launcher=slurm | -m hydra/launcher=slurm hydra.launcher.time=abc | -m hydra/launcher=submitit_slurm
-m hydra.sweeper.max_batch_size=abc seed=0,1 | k=100000000 steps=1000000000 plan=true
batch.size=1000000000000
model.width=1000000000000 | model.vocab_size=1000000000000 | model.layers=1000000 plan=true | model.layers=1000000
model.context=1000000000 | evaluate.batch_size=1000000000000000 evaluate.samples=1000000000000000
steps=1e400 | tokens=-5 | samples=0 | epochs=0 | epochs=1e300 plan=true | epochs=1e300 | trainer.threads=1000000
trainer.threads=1000000 plan=true | averagers.lawa.k=half | evaluate.every=1e999epochs | evaluate.every=1e300epochs
evaluate.every=0% | spacing=0% | spacing=0epoch | spacing=nanepochs | trainer.device=foo | trainer.device=''
avg=ema averagers.ema.decay=half_life:0 | avg=ema averagers.ema.decay=lawa:x | avg=ema averagers.ema.decay=1.5
avg=swa averagers.swa.start=-5% | avg=power_ema averagers.power_ema.sigma_rel=5 | avg=bema averagers.bema.lag=-1
avg=ema averagers.ema.decay=half_life:-3% | avg=ema averagers.ema.start=120%x | epochs=1e-300 | tokens=1e400
"""

READOUT = """
--k=abc | --k=0 | --k=-1 | --k=1.5 | --k= | --k=, | --k=3,,2 | --k=3,abc | --k=1e400 | --k=99999999999 | --k=nan
--k=true | --spacing=7 | --spacing=0 | --spacing=-10 | --spacing=1000000000 | --spacing= | --spacing=abc
--spacing=15 | --spacing=nan | --avg=foo | --avg= | --avg=lawa, | --avg=lawa,foo | --avg=none | --avg=LAWA
--start=-1 | --start=abc | --start=1000 | --start=nan | --start= | --name=../../x | --name=a/b | --name=..
--name=. | --name=/abs | --name= | --out=file.txt | --out=run | --out=run/trajectory
--out=run/readouts/test | --out=run/readouts/../averages | --bn=foo | --bn= | --device=foo | --device=
--device=cuda:99 | --device=cpu:5 | --threads=0 | --threads=-1 | --threads=abc | --threads=1000000
--threads= | --gpu-hours=-1 | --gpu-hours=nan | --gpu-hours=inf | --gpu-hours=abc | --gpu-hours=
--steps-per-epoch=0 | --steps-per-epoch=x | --model=foo | --model=gpt_tiny | --dataset=foo | --dataset=pydocs
--evaluate=foo | --evaluate=os: | --evaluate=:x | --evaluate=os:nope | --evaluate= | --evaluate=zeroshot
--evaluate=perplexity | --evaluate=a.b:c | --revisions=abc | --revisions= | --revisions=step20..step10
--revisions=step15 | --tasks=piqa | --limit=5 | --limit=0 | --published=missing | --text=file.txt | --tokenizer=missing
--text= | --decay=0.5 | --foo=x | --view=foo | --view= | --avg=ema --decay=2 | --avg=ema --decay=nan
--avg=ema --decay= | --avg=ema --every=0 | --avg=ema --every=-5 | --avg=ema --warmup=maybe | --avg=swa --k=3
--avg=power_ema --sigma_rel=5 | --avg=bema --lag=-1 | lr.peak=5 | --evaluate=zeroshot --limit=x
--evaluate=zeroshot --tasks= | --evaluate=perplexity --text=missing | --evaluate=perplexity --text=
--evaluate=perplexity --text=fifo | --evaluate=perplexity --text=/dev/zero | --evaluate=perplexity --text=emptyfile
--evaluate=perplexity --text=full | --evaluate=perplexity --text=file.txt --tokenizer=file.txt
"""

AVERAGE = """
a.st b.st | --out o | A B --out file.txt | A B missing.pt --out o | A B file.txt --out o | A B empty --out o
A B bin.dat --out o | A B emptyfile --out o | A B fifo --out o | A B loop1 --out o | A B /dev/null --out o
A B /dev/zero --out o | A B '' --out o | nomatch*.pt --out o | [ --out o | run --out o | A B --k 5 --out o
A B --k 0 --out o | A B --k x --out o | A B --k 1e400 --out o | A B --k nan --out o | A B --k '' --out o
A B --weights 1 --out o | A B --weights 1,2,3 --out o | A B --weights a,b --out o | A B --weights nan,1 --out o
A B --weights 1e308,1e308 --out o | A B --weights '' --out o | A B --weights 0,0 --out o
A B --weights 1,2 --method ema --out o | A B --weights 1,2 --k 2 --out o | A B --method foo --out o
A B --method ema --decay 5 --out o | A B --decay 0.5 --out o | A B --dtype int8 --out o | A B --dtype '' --out o
A B --at 30 --out o | A B --at abc --out o | A B --at -1 --out o | A B --at '' --out o | A B --spacing 0 --out o
A B --spacing 1epoch --out o | A B --start 50% --out o | A B --every 0 --method swa --out o
A B --trajectory run --out o | A B --method '' --out o | --trajectory missing --out o | --trajectory file.txt --out o
--trajectory empty --out o | --trajectory loop1 --out o | --trajectory run --k 50 --out o
--trajectory run --spacing 7 --out o | --trajectory run --at 15 --out o | --trajectory run --at 0 --out o
--trajectory run --out run --k 2 --spacing 10 | --trajectory run --out run/trajectory | --trajectory '' --out o
--trajectory run --k 99999999999999999999 --out o | --trajectory run --start 10000 --out o
--trajectory run --spacing 1e9 --out o | --trajectory run --k 2 --out run/averages/x
--trajectory ckpts --k 2 --out ckpts | hf_out hf_out --out o | hf_fifo hf_fifo --out o
"""

OTHERS = {
    "suggest": """
        run x | run --device foo | run --device cuda:99 | run --device '' | run --threads 0 | run --threads -1
        run --threads abc | run --threads '' | run --threads 1000000 | ckpts | run --json --foo | sweep
        """,
    "status": """
        run --watch 0 | run --watch -1 | run --watch abc | run --watch nan | run --watch inf | run run
        badsweep0 | badsweep1 | badsweep2 | badsweep3
        """,
    "dashboard": "run --foo | badsweep0 | badsweep1 | badsweep2 | badsweep3 | nosweep | run --out run/config.yaml "
    "| run --out run/metrics.jsonl | run --out empty | run --out missing/x.html",
    "summary": "run | badsweep0 | badsweep1 | badsweep2 | badsweep3 | nosweep | sweep --out file.txt | ckpts",
    "export": """
        run --to foo --out x1 | run --to huggingface | run X --weights foo | run X --weights ../trajectory
        run X --weights .. | run X --weights '' | run X --weights lawa-k2-s10 --step 10 | run X --step 15
        run X --step abc | run X --step -1 | run X --step '' | run --to fairseq --out x1 | run --to '' --out x1
        run X --tokenizer-path missing | run X --tokenizer-path '' | bin.dat X | ckpts/ckpt_10.safetensors X
        ckpts X | run/trajectory X | run/resume X | garbage.pt X | emptyp.pt X | dirp.pt X | fifo.pt X
        run --to huggingface --out empty | run --to huggingface --out dangling
        run --to huggingface --out run/trajectory/step_00000099
        """,
    "push": """
        --show | run --foo | --workspace | run --offline --project '' | run --offline --project a/b
        run --offline --entity '' | badsweep0 --offline | badsweep1 --offline | badsweep2 --offline
        badsweep3 --offline | nosweep --offline
        """,
    "curvature": """
        run --step abc | run --step 15 | run --step -1 | run --step '' | run --weights foo | run --weights ''
        run --weights .. | run --batch 0 | run --batch abc | run --batch '' | run --batch 1e400
        run --batch 99999999999 | run --batches 0 | run --batches -1 | run --samples 0 | run --samples abc
        run --samples 99999999999999 | run --iterations 0 | run --iterations abc | run --probes 0
        run --probes -1 | run --seed abc | run --seed -1 | run --name ../../x | run --name '' | run --name a/b
        run --name .. | run --out run | run --out run/trajectory | run --device foo | run --device ''
        """,
    "critical_batch": """
        run | sweep | badsweep0 | badsweep1 | badsweep2 | badsweep3 | nosweep | sweep --levels abc
        sweep --levels '' | sweep --levels nan | sweep --hold-out abc | sweep --hold-out -1 | sweep --smooth 2
        sweep --smooth 0 | sweep --smooth abc | sweep --weights foo | sweep --weights ''
        """,
    "published": """
        table.csv | emptyfile --model x | bin.dat --model x | table.csv --model foo
        table.csv --model '' | table.csv --model m --tasks foo | table.csv --model m --tasks ''
        table.csv --model m --suite foo | table.csv --model m --suite '' | table.csv --model m --out file.txt
        table.csv --model m --out run | bin.gz --model x | table.csv --model m --out run/readouts/test
        """,
    "data": """
        foo | prepare | prepare foo --out d | P --out d --source missing | P --out d --source ''
        P --out d --source empty | P --out d --source bin.dat | P --out d --source bad.jsonl
        P --out d --source bad2.jsonl | P --out d --source bad3.jsonl | P --out d --source bad.jsonl.gz
        P --out d --source bad.parquet | P --out d --source loop1 | P --out d --source fifo
        P --out d --source emptyl.jsonl | P --out d --source /dev/zero | D d --val-fraction abc
        D d --val-fraction nan | D d --val-fraction -1 | D d --val-fraction 1 | D d --workers 0
        D d --workers -1 | D d --workers abc | D d --workers '' | D d --workers 1000000 | D d --tokenizer-path missing
        D d --tokenizer-path '' | D d --tokenizer-path empty | D full | D withtrain | D withmeta | D withprog
        """,
    "reproduce": """
        foo | '' | ewa --scale foo | ewa --scale '' | ewa --jobs 0 | ewa --jobs -1 | ewa --jobs abc | ewa --jobs ''
        ewa --jobs 0 --plan | ewa --launcher foo | ewa --claims missing | ewa --claims empty | ewa --claims badclaims
        ewa --claims badclaims2 | ewa --claims '' | ewa --read --out file.txt | ewa --read --runs-root file.txt
        ewa --plan -- nokey=1 | ewa --plan -- foo | ewa --plan --runs-root 'a b,c=d' | ewa --foo
        ewa --read --out '' | ewa --runs-root '' --plan | ewa --read --out run
        """,
    "launch.slurm.requeue": "run | run abc | missing 1 | run 1 | run -1 | file.txt 1 | loop1 1 | '' 1",
    "draw_schedules": "--out file.txt/x | --out /proc/x.png | nokey=1 | lr.peak=abc | --foo | model=resnet20",
}

# Commands with a path first: what follows it, and the flag that says where to write, with what goes before it.
READING = {
    "readout": ("--k 2 --spacing 10", "--out"),
    "suggest": ("", None),
    "status": ("", None),
    "dashboard": ("", "--out"),
    "summary": ("", "--out"),
    "export": ("--to huggingface --out x1", None),
    "push": ("--offline", None),
    "curvature": ("--samples 4 --batches 1 --iterations 2 --batch 1", "--out"),
    "critical_batch": ("", "--out"),
    "published": ("--model m", "--out"),
}
GOOD = {"summary": "sweep", "critical_batch": "sweep", "published": "table.csv"}  # in place of `run`
WORDS = {
    "A": "ckpts/ckpt_10.safetensors",
    "B": "ckpts/ckpt_20.safetensors",
    "X": "--to huggingface --out x1",
    "P": "prepare openwebtext",
    "D": "prepare openwebtext --source docs.jsonl --out",
}


def place(folder: Path, run: Path) -> None:
    """What the lines name, in `folder`; run: a finished run of SMALL."""
    shutil.copytree(run, folder / "run")
    shutil.rmtree(folder / "run/readouts")  # RUN/readouts/test is what a training writes
    (folder / "run/readouts/test").mkdir(parents=True)
    (folder / "ckpts").mkdir()
    for step in (10, 20, 30):
        snapshot = folder / f"run/trajectory/step_{step:08d}/model.safetensors"
        shutil.copy(snapshot, folder / f"ckpts/ckpt_{step}.safetensors")
    for name in ("empty", "full", "dirp.pt", "nosweep"):
        (folder / name).mkdir()
    for name in ("emptyfile", "emptyp.pt", "emptyl.jsonl", "full/x"):
        (folder / name).touch()
    for name in ("fifo", "fifo.pt"):
        os.mkfifo(folder / name)
    for name, to in {"loop1": "loop2", "loop2": "loop1", "dangling": "nowhere"}.items():
        (folder / name).symlink_to(to)
    (folder / "file.txt").write_text("hello world, this is a text file\n" * 200)
    noise = bytes(range(255, 127, -1)) * 40
    for name in ("bin.dat", "garbage.pt", "bin.gz"):
        (folder / name).write_bytes(noise)
    for name, to in {"hf_out": "../ckpts/ckpt_10.safetensors", "hf_fifo": "shard.safetensors"}.items():
        (folder / name).mkdir()
        index = {"metadata": {}, "weight_map": {"transformer.wte.weight": to}}
        (folder / name / "model.safetensors.index.json").write_text(json.dumps(index))
    os.mkfifo(folder / "hf_fifo/shard.safetensors")
    bad = ['{"entries": 5}', "[]", '{"command": "x", "entries": [{"run_dir": 5}]}', '{"entries": ']
    sweeps = {"sweep": SWEEP.replace("RUN", str(folder / "run"))} | {f"badsweep{i}": t for i, t in enumerate(bad)}
    sweeps["nosweep"] = '{"command": "x", "entries": []}'
    for name, text in sweeps.items():
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "manifest.json").write_text(text)
    files = {
        "docs.jsonl": "".join(json.dumps({"text": f"document {i} with some words"}) + "\n" for i in range(50)),
        "bad.jsonl": '{"text": "a"}\n{"text": 5}\n',
        "bad2.jsonl": '{"text": "a"}\nnot json\n',
        "withtrain/train.bin": "xx",
        "withmeta/meta.json": "{}",
        "withprog/progress.json": '{"format_version": 1}',
        "badclaims/trainings.yaml": "5",
        "badclaims2/trainings.yaml": "sets: {a: {foo: 1}}\nforms: {}\n",
        "table.csv": "suite,model,shot,step,task,metric,value,stderr\npythia-v1,m,0,1000,piqa,acc,0.5,0.01\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "bad3.jsonl").write_bytes(b'{"text": "a"}\n\xff\xfe\n')
    (folder / "bad.jsonl.gz").write_bytes(b"\x1f\x8b garbage")
    (folder / "bad.parquet").write_bytes(b"PAR1 garbage")
