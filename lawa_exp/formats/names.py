"""What a checkpoint's name says: its step and in which unit, or that it is an average or another file's copy.

The rules, in order (docs/checkpoints.md has what trainers write, and the tests put numbers into it):

1. The number behind `step`, `iter`, `update`, `ba`, `epoch`, `ep`, `e`, `samples`, `tokens` or `images` (`step_500`,
   `epoch=3`), or before it (`12epoch`, `500_steps`), counts these; the last one where there are several.
   `1e6` behind such a word is a million, and `3_of_10` the third.
2. Never a step: decimals, `1e-3`, and `1e3` behind any other word; what stands behind a metric up to the next word that
   counts; the number of a setting (`seed1`, `rank_0`, `fold_2`, `lr_3`), or behind the `=` of any other key; dates,
   times, hashes, versions (`v2-1`), shards (`00001-of-00004`); a number that touches letters (`124M`, `resnet50`), but
   for `checkpoint12`.
3. Else the last number that is left. Two of them behind `checkpoint` are an epoch and an update, as fairseq's.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from lawa_exp.formats.stored import SUFFIXES

UPDATES, EPOCHS, NUMBER = "updates", "epochs", "numbers without a unit"
UNITS = (UPDATES, EPOCHS, NUMBER, "batches", "samples", "tokens", "images")  # what is preferred where there are several


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _joined(first: str, second: str) -> frozenset[str]:
    """Each word of one text with each of the other; `-` stands for none."""
    return frozenset((a + b).replace("-", "") for a in first.split() for b in second.split())


# Sets, where regular expressions would take milliseconds of each command to compile. A word is looked up in lower case.
WORDS = {
    UPDATES: _words("it itr ba")
    | _joined(
        "- global train training optim optimizer n num", "step steps iter iters iteration iterations update updates"
    ),
    EPOCHS: _words("epoch epochs ep"),
    NUMBER: _words("round rounds"),
    "batches": _words("batch batches"),
    "samples": _words("sample samples"),
    "tokens": _words("token tokens tok toks"),
    "images": _words("image images img imgs kimg"),
}
UNIT_OF = {word: unit for unit, words in WORDS.items() for word in words}
KEYS = {"e": EPOCHS, "n": NUMBER, "t": NUMBER}  # these count before `=` alone; `e3`, too
PLAIN = _joined("check chk ck ckp cp", "- s point points pt pts t ts") | _words(
    "model weight weights snapshot state params save saved"
)
TOTAL = _words("total max warmup decay accum accumulation every per eval log inference denoising")
METRIC = _words(
    "err metric val valid dev auc auroc auprc iou miou dice precision recall psnr ssim lpips fid kid bleu rouge meteor "
    "cider ppl perplexity bpb bpc nll elbo kl wer cer eer mse rmse mae reward return elo mos pesq stoi ndcg mrr mcc "
    "kappa fitness"
)
METRIC_ENDS = ("loss", "acc", "accuracy", "error", "score")
NUMBERED_METRIC = _words("top f map ap r hit hits")  # top1, F1, mAP50
SETTING = _words(
    "lr wd bs dropout seed fold mp tp pp dp rank gpu gpus node nodes worker workers shard part split fp bf int bit "
    "bits size layer layers dim hidden width depth head heads ctx context len length seq crop res patch run runs exp "
    "experiment trial job stage phase attempt try top k"
)
ANY_AVERAGE = _words("avg ave average averaged averages averaging")  # of weights, or of a metric
AVERAGE = _words("ema swa lawa wma bema ewa polyak soup") | ANY_AVERAGE
POOLING = _words("pool pooling precision max")  # what else may be `average`
COPY = _words("best last latest final current recent recovery interrupted emergency milestone")
LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
SHARD = re.compile(r"(?<!\d)\d{5}-of-\d{5}(?!\d)")
TOKEN = re.compile(r"(?P<number>\d+(?:\.\d+)*(?:[eE][-+]\d+)?)|(?P<word>[A-Za-z]+)")
POWER = re.compile(r"(?P<digits>\d+(?:\.\d+)?)[eE]\+?(?P<power>\d\d?)(?![\dA-Za-z])")  # 1e6, behind a word that counts
TIMES = {"k": 10**3, "m": 10**6, "b": 10**9}  # behind the number of a word that counts

_TIME = r"(?:[-_t.+ ]*(?:[01]\d|2[0-3])(?:[-_:.h]?[0-5]\d){1,2}(?:[-+]\d\d)?)?"
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*[-_. ]?[0-3]?\d"
NEVER = re.compile(  # in lower case
    rf"(?<!\d)(?:19|20)\d\d([-_.]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01]){_TIME}(?!\d)"  # a date
    rf"|(?<![a-z]){_MONTH}{_TIME}(?!\d)"
    r"|(?<!\d)1[4-9]\d{8}(?:\d{3})?(?!\d)"  # seconds or milliseconds since 1970
    r"|(?<!\d)\d+[-_]?of[-_]?\d+(?!\d)"  # a shard
    r"|mp_rank_\d+(?:_\d+)?"
    r"|(?<![a-z])v(?:er|ersion)?[-_.]?\d+(?:[-_.]\d(?!\d))*(?![a-z])"
    r"|patch\d+[-_]\d+|(?<![a-z])(?:vit|deit|beit|swin|clip)[-_][a-z][-_]?\d+"
    r"|(?<![a-z])e5[-_](?:small|base|large|mistral)"  # of models
    r"|(?<![a-z0-9])(?!(?:e|ba|ep)\d+(?![a-z0-9]))(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{7,}(?![a-z0-9])",  # a hash
)


@dataclass(frozen=True)
class Named:
    """What a name says. counts: by unit; numbers: those without a unit; glued: the last that touches another word.

    kind: the name up to its step, with `#` for numbers: names of another kind may count something else.
    """

    counts: Mapping[str, int]
    numbers: tuple[int, ...] = ()
    glued: int | None = None
    kind: str = ""
    pattern: str = ""  # a regular expression whose group is the step
    is_average: bool = False
    is_copy: bool = False  # the best or latest of others
    is_shard: bool = False

    @property
    def step(self) -> int | None:
        return next((self.counts[unit] for unit in UNITS if unit in self.counts), None)

    @property
    def is_labelled(self) -> bool:
        return bool(self.counts.keys() - {NUMBER})


def step_in(name: str) -> int | None:
    """The step that a name says; None without."""
    return named(name).step


@cache
def named(name: str) -> Named:
    """Reads a file's or folder's name, by the rules above."""
    suffix = max((s for s in SUFFIXES if name.endswith(s)), key=len, default="")
    whole = name.removesuffix(suffix)
    text = _masked(whole)
    counts: dict[str, int] = {}
    places: dict[str, re.Match[str]] = {}
    loose: list[re.Match[str]] = []
    glued: int | None = None
    owned = False  # whether a metric owns the numbers that follow
    tokens = list(TOKEN.finditer(text))
    behind_power = 0
    for i, token in enumerate(tokens):
        if token.start() < behind_power:
            continue
        if word := token["word"]:
            is_metric = _is_metric(word) or (bool(loose or counts) and word.lower() in NUMBERED_METRIC)
            owned = not _unit(text, tokens, i) and (owned or is_metric)
            continue
        if power := POWER.match(text, token.start()):
            behind_power = power.end()
            if unit := _owner(text, tokens, i, power.end()):
                counts[unit] = int(float(f"{power['digits']}e{power['power']}"))
                places.pop(unit, None)  # no expression finds it
            continue
        if not token["number"].isdigit():
            continue
        value, behind = int(token["number"]), text[token.end() :]
        before = tokens[i - 1] if i and tokens[i - 1]["word"] else None
        touches = before is not None and before.end() == token.start()
        unit = _unit(text, tokens, i - 1) if before else None
        after = re.match(r"(?:(?P<times>[kKmMbB])(?![A-Za-z]))?(?P<letters>[A-Za-z]*)", behind)
        assert after
        if unit is None and (trailing := _unit_behind(text, tokens, i, behind)) and not owned:
            unit = trailing
        if unit:
            if not after["letters"] or _counting(after["letters"]) or after["times"]:
                counts[unit] = value * TIMES.get((after["times"] or "").lower(), 1)
                places[unit] = token
        elif owned or after[0] or text[: token.start()][-1:] == "=" or (before and _is_setting(before[0], touches)):
            continue
        elif touches and before and before[0].lower() not in PLAIN:
            glued = value
        else:
            loose.append(token)
    if loose:
        _count_loose(text, loose, counts, places)
    unit = next((u for u in UNITS if u in places), None)
    return Named(
        counts,
        tuple(int(t[0]) for t in loose),
        glued,
        _kind(text[: places[unit].start()]) if unit else "",
        _pattern(whole, places[unit]) if unit else "",
        _is_average(text, tokens),
        any(t[0].lower() in COPY for t in tokens),
        SHARD.search(name) is not None,
    )


def of_entry(first: str, second: str) -> Named:
    """What two names say together, as of a folder and the file in it: the first, unless the second says more."""
    one, two = named(first), named(second)
    chosen = two if (two.is_labelled and not one.is_labelled) or not one.counts else one
    average, copy = one.is_average or two.is_average, one.is_copy or two.is_copy
    pattern = chosen.pattern if chosen is one or not chosen.pattern else f"/{chosen.pattern}"
    return Named(chosen.counts, chosen.numbers, chosen.glued, chosen.kind, pattern, average, copy, chosen.is_shard)


def _owner(text: str, tokens: list[re.Match[str]], i: int, end: int) -> str | None:
    """What the number that begins with token `i` and ends at `end` counts, by the word before or behind it."""
    before = _unit(text, tokens, i - 1) if i and tokens[i - 1]["word"] else None
    return before or _unit_behind(text, tokens, i, text[end:])


def _masked(text: str) -> str:
    """With `_` for what looks like a count and never is one. The number of a word that counts stays."""
    masked = text
    for match in NEVER.finditer(text.translate(LOWER)):
        begin, end = match.span()
        tokens = list(TOKEN.finditer(text[:begin]))
        last = tokens[-1] if tokens else None
        ends = last is not None and re.fullmatch(r"[-_=.: ]?", text[last.end() : begin])
        if last is not None and ends and last["word"] and _counting(last[0]):
            of = re.match(r"\d+(?=[-_]?of[-_]?\d+$)", match[0]) if not SHARD.fullmatch(match[0]) else None
            if match[0].isdigit():
                continue
            begin += of.end() if of else 0  # epoch_3_of_10
        masked = masked[:begin] + "_" * (end - begin) + masked[end:]
    return masked


def _is_setting(word: str, touches: bool) -> bool:
    """Whether the number behind this word is its own."""
    return word.lower() in SETTING or (touches and word.lower() in NUMBERED_METRIC)


def _counting(word: str) -> str | None:
    return UNIT_OF.get(word.lower())


def _is_metric(word: str) -> bool:
    return word.lower() in METRIC or word.lower().endswith(METRIC_ENDS)


def _unit(text: str, tokens: list[re.Match[str]], i: int) -> str | None:
    """What the word at `i` counts, where it stands before a number."""
    word = tokens[i][0]
    if i and tokens[i - 1]["word"] and tokens[i - 1][0].lower() in TOTAL:
        return None
    behind = text[tokens[i].end() :]
    if word.lower() in KEYS:
        is_epoch = word.lower() == "e" and re.match(r"\d+(?![\d.A-Za-z])", behind) is not None
        return KEYS[word.lower()] if is_epoch or behind[:1] == "=" else None
    if word.lower() in PLAIN and behind[:1] == "=":
        return NUMBER
    return _counting(word)


def _unit_behind(text: str, tokens: list[re.Match[str]], i: int, behind: str) -> str | None:
    """What a number counts whose word stands behind it: `12epoch`, `500_steps`, `100k_steps`."""
    match = re.match(r"[kKmM]?[-_ ]?([A-Za-z]+)(?![-_=.:]?\d)", behind)
    if not match or match[1].lower() == "ba":
        return None
    touching = not re.match(r"[-_ ]", behind)
    return _counting(match[1]) if touching or match[1].lower().endswith(("s", "epoch", "iter")) else None


def _count_loose(
    text: str, loose: list[re.Match[str]], counts: dict[str, int], places: dict[str, re.Match[str]]
) -> None:
    """Gives the numbers without a word their meaning."""
    if not counts and len(loose) == 2 and re.fullmatch(r"checkpoint_\d+_\d+", text[: loose[1].end()]):
        counts[EPOCHS], counts[UPDATES] = (int(t[0]) for t in loose)  # fairseq's
        places[EPOCHS], places[UPDATES] = loose
    else:
        counts[NUMBER] = int(loose[-1][0])
        places[NUMBER] = loose[-1]


def _kind(text: str) -> str:
    return re.sub(r"\d+(\.\d+)*", "#", text)


def _pattern(text: str, place: re.Match[str]) -> str:
    """Matches `text`, and names like it, up to the step, which is its group."""
    parts = re.split(r"(\d+(?:\.\d+)*)", text[: place.start()])
    before = "".join(r"[\d.]+" if part[:1].isdigit() else re.sub(r"([^\w=-])", r"\\\1", part) for part in parts)
    return rf"{before or '^'}(\d+)"


def _is_average(text: str, tokens: list[re.Match[str]]) -> bool:
    """Whether a word stands for averaged weights, and for no metric's average: `avg_loss`, `loss_avg`, `avg=0.1`."""
    for i, token in enumerate(tokens):
        following = next((t["word"] for t in tokens[i + 1 :] if t["word"]), "")
        touching = bool(re.match(r"[-_]?[A-Za-z]", text[token.end() :]))
        if token["word"] and token[0].lower() in AVERAGE:
            is_value = text[token.end() :][:1] == "=" or token[0].lower() in ANY_AVERAGE
            if touching and (_is_metric(following) or following.lower() in POOLING):
                continue
            if not (is_value and (_is_of_a_metric(text, tokens, i) or re.match(r"=\d+\.", text[token.end() :]))):
                return True
        elif token["word"] and re.search(r"[a-z](EMA|SWA|LAWA)$", token[0]):
            return True
    return False


def _is_of_a_metric(text: str, tokens: list[re.Match[str]], i: int) -> bool:
    """Whether the word before touches, as `loss` in `loss_avg`, or one with a number, as in `top1_avg`."""
    if i == 0 or not re.fullmatch("[-_]?", text[tokens[i - 1].end() : tokens[i].start()]):
        return False
    before = tokens[i - 1]
    if before["word"]:
        return _is_metric(before[0]) or before[0].lower() in NUMBERED_METRIC
    name = tokens[i - 2] if i > 1 and tokens[i - 2].end() == before.start() else None
    return name is not None and name[0].lower() in NUMBERED_METRIC
