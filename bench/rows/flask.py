"""Flask on Debian's SELinux policy: loading it, and decisions with and without the cache.

The rule: a miss is computed. No question has the same source type, target type and class as
another one of the run, so nothing kept from one answer can give the next.
"""

from __future__ import annotations

import ctypes
import functools
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from bench.measure import Row, compare, interleaved, say, single
from skerry.errors import SkerryError
from skerry.label import make_label
from skerry.policy.history import MemoryHistory
from skerry.policy.manager import PolicyManager
from skerry.policy.policydb.read import read_policydb
from skerry.xsm.flask.model import ALLOW, FULL_VECTOR, Context, values
from skerry.xsm.flask.module import FlaskModule
from skerry.xsm.flask.server import SecurityServer
from skerry.xsm.request import Request
from skerry.xsm.stack import Stack
from tests.oracle.compare import Draw
from tests.oracle.sepol import LIBRARY, AvDecision, Sepol
from tests.support import policies

LOADS = 11
ROUNDS = 15
EACH = 8_000
CACHED = 20_000

_LOAD = """\
import sys, time
begin = time.perf_counter()
from skerry.policy.source import load_stack
from skerry.xsm.request import Request
imported = time.perf_counter()
stack = load_stack([sys.argv[1]])
owner = stack.operator_label()
stack.decide(Request(owner, owner, "process", ("fork",)), 1)
ready = time.perf_counter()
for line in open("/proc/self/status"):
    if line.startswith("VmRSS"):
        print(imported - begin, ready - imported, int(line.split()[1]) * 1024 / 1e6)
"""

Question = tuple[Context, Context, int]


class Loaded(msgspec.Struct, frozen=True):
    """What one fresh process took: seconds for imports, seconds to its first answer, RSS in MB."""

    imports: float
    ready: float
    rss_mb: float


def load_seconds() -> Row:
    """Time from the file to the first decision, in a fresh process; its imports are shown."""
    loaded = _loads()
    imports = sorted(load.imports for load in loaded)[LOADS // 2]
    say(f"flask-load-s: the imports before it take {imports:.3f} s")
    return single("flask-load-s", "s", [load.ready for load in loaded], "<= 0.3")


def rss() -> Row:
    """Resident memory of a process that has loaded the policy and decided once."""
    return single("flask-rss-mb", "MB", [load.rss_mb for load in _loads()], "<= 120")


@functools.cache
def _loads() -> tuple[Loaded, ...]:
    argv = [sys.executable, "-c", _LOAD, str(policies.selinux())]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    found = []
    for _ in range(LOADS):
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SkerryError(f"the policy was not loaded: {done.stderr.strip()[-300:]}")
        found.append(Loaded(*map(float, done.stdout.split())))
    return tuple(found)


class Questions:
    """The mix: half of pairs that an allow rule names, half of pairs and classes at random."""

    def __init__(self, seed: int = 1) -> None:
        path = policies.selinux()
        self.path = path
        self.policy = read_policydb(path.read_bytes(), str(path))
        self._draw = Draw(self.policy, seed)
        self._random = random.Random(seed)
        self._rules = [rule for rule in self.policy.rules if rule[3] == ALLOW]
        self._types = [kind.value for kind in self.policy.types.values() if not kind.attribute]
        self._members: dict[int, list[int]] = {}
        for kind in self._types:
            for one in values(self.policy.attributes[kind]):
                self._members.setdefault(one, []).append(kind)
        self._asked: set[tuple[int, int, int]] = set()

    def draw(self, count: int) -> list[Question]:
        """Return questions in random order, none of them drawn before."""
        found: list[Question] = []
        for source, target, tclass in self._triples(count):
            found.append((self._draw.context(source), self._draw.context(target), tclass))
        self._random.shuffle(found)
        return found

    def text(self, context: Context) -> str:
        """Write a context."""
        return self._draw.contexts.text(context)

    def _triples(self, count: int) -> Iterator[tuple[int, int, int]]:
        chance, classes = self._random, list(self.policy.classes)
        for number in range(count):
            while True:
                source, target, tclass = map(chance.choice, (self._types, self._types, classes))
                if number % 2:
                    one, two, tclass, *_ = chance.choice(self._rules)
                    source = chance.choice(self._members.get(one, self._types))
                    target = chance.choice(self._members.get(two, self._types))
                triple = source, target, tclass
                if triple not in self._asked:
                    break
            self._asked.add(triple)
            yield triple


@functools.cache
def _questions() -> Questions:
    return Questions()


def hits() -> Row:
    """Decisions a second that the manager finds in its cache; the requests are already made."""
    questions = _questions()
    policy = questions.policy
    stack = Stack([FlaskModule(policy)])
    manager = PolicyManager(stack, MemoryHistory())
    labels = {}
    requests = []
    for source, target, value in questions.draw(CACHED):
        tclass = policy.classes[value]
        for side in (source, target):
            if side not in labels:
                labels[side] = make_label(questions.text(side), stack.names)
        permission = next(name for name in tclass.permissions if name)
        requests.append(Request(labels[source], labels[target], tclass.name, (permission,)))
    decide = manager.decide_request
    begin = time.perf_counter()
    for request in requests:
        decide(request)
    worded = len(requests) / (time.perf_counter() - begin)
    say(f"flask-hit-per-s: the first time, with the reason in words: {worded:.0f} /s")
    rates = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for request in requests:
            decide(request)
        rates.append(len(requests) / (time.perf_counter() - begin))
    return single("flask-hit-per-s", "/s", rates, ">= 1500000")


def misses() -> Row:
    """Exact vectors a second, each computed."""
    questions = _questions()
    server = SecurityServer(questions.policy)
    rates = [_ours(server, questions.draw(EACH)) for _ in range(ROUNDS)]
    return single("flask-miss-per-s", "/s", rates, ">= 120000")


def misses_versus_libsepol() -> Row:
    """Ask both the same questions, in turn; what they answer is compared before."""
    questions = _questions()
    server = SecurityServer(questions.policy)
    oracle = Libsepol(questions)
    ours: list[float] = []
    other: list[float] = []
    for number in range(ROUNDS):
        asked = questions.draw(EACH)
        theirs = oracle.questions(asked)
        # Rates are taken first: what either keeps is then new to it.
        series = interleaved(
            functools.partial(_ours, server, asked),
            functools.partial(oracle.rate, theirs),
            runs=1,
            turn=number,
        )
        ours += series[0]
        other += series[1]
        oracle.check(server, asked, theirs)
    return compare("flask-miss-vs-libsepol", "/s", ours, other, ">= 3")


def _ours(server: SecurityServer, asked: Sequence[Question]) -> float:
    vectors = server.vectors
    begin = time.perf_counter()
    for source, target, tclass in asked:
        vectors(source, target, tclass)
    return len(asked) / (time.perf_counter() - begin)


class Libsepol:
    """libsepol through ctypes, as lean as that can be called."""

    def __init__(self, questions: Questions) -> None:
        self._questions = questions
        self._oracle = Sepol(questions.path)
        self._decision = AvDecision()
        self._answer = ctypes.byref(self._decision)
        # The library keeps one policy for the whole process, the one that `Sepol` has loaded.
        self._compute = ctypes.CDLL(LIBRARY).sepol_compute_av
        word = ctypes.c_uint32
        self._compute.argtypes = [word, word, ctypes.c_uint16, word, ctypes.c_void_p]

    def questions(self, asked: Sequence[Question]) -> list[tuple[int, int, int]]:
        """Return the questions in libsepol's numbers, made before anything is timed."""
        oracle, text, classes = self._oracle, self._questions.text, self._questions.policy.classes
        found = []
        for source, target, tclass in asked:
            one, two = oracle.sid(text(source)), oracle.sid(text(target))
            if one is None or two is None:
                raise SkerryError(f"libsepol knows no context {text(source)} or {text(target)}")
            found.append((one, two, oracle.tclass(classes[tclass].name)))
        return found

    def rate(self, asked: Sequence[tuple[int, int, int]]) -> float:
        """Return decisions a second."""
        compute, answer = self._compute, self._answer
        begin = time.perf_counter()
        for source, target, tclass in asked:
            compute(source, target, tclass, FULL_VECTOR, answer)
        return len(asked) / (time.perf_counter() - begin)

    def check(
        self,
        server: SecurityServer,
        asked: Sequence[Question],
        theirs: Sequence[tuple[int, int, int]],
    ) -> None:
        """Raise `SkerryError` if one answer differs: then there is nothing to compare."""
        for question, numbers in zip(asked, theirs, strict=True):
            status = self._compute(*numbers, FULL_VECTOR, self._answer)
            found, mine = self._decision, server.vectors(*question)
            same = (mine.allowed, mine.auditallow, mine.dontaudit ^ FULL_VECTOR) == (
                found.allowed,
                found.auditallow,
                found.auditdeny,
            )
            if status or not same:
                raise SkerryError(f"libsepol and Skerry differ over {question}")
