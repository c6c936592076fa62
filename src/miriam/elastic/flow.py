"""Control flow of a PTX function: which instructions can come after which, and its loops."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from miriam.elastic.ptx import Block, Directive, Function, Instruction, Label, Name

__all__ = ["Flow"]


@dataclass(slots=True)
class _Scope:
    """Labels and branch tables of a block, and of the blocks around it."""

    outer: _Scope | None
    labels: dict[str, int] = field(default_factory=dict)
    tables: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def label(self, name: str) -> int | None:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.labels:
                return scope.labels[name]
            scope = scope.outer
        return None

    def table(self, name: str) -> tuple[str, ...] | None:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.tables:
                return scope.tables[name]
            scope = scope.outer
        return None


class Flow:
    """The control flow of a function with a body.

    Attributes
    ----------
    steps
        Its instructions in the order of the text.
    after
        For each of them the instructions that may come next, by number; the number behind the last
        is the end of the function. A branch whose target is not known may lead anywhere.
    """

    __slots__ = ("after", "steps")

    def __init__(self, function: Function) -> None:
        assert function.body is not None
        self.steps: list[Instruction] = []
        scopes: list[_Scope] = []
        self._collect(function.body, None, scopes)
        self.after: list[tuple[int, ...]] = [
            tuple(self._next(i, step, scope)) for i, (step, scope) in enumerate(zip(self.steps, scopes, strict=True))
        ]

    def _collect(self, block: Block, outer: _Scope | None, scopes: list[_Scope]) -> None:
        scope = _Scope(outer)
        for statement in block.statements:
            if isinstance(statement, Label):
                scope.labels[statement.name] = len(self.steps)
            elif isinstance(statement, Block):
                self._collect(statement, scope, scopes)
            elif isinstance(statement, Instruction):
                self.steps.append(statement)
                scopes.append(scope)
            elif isinstance(statement, Directive) and statement.name == ".branchtargets":
                # The table bears the label in front of it.
                table = next((n for n, at in reversed(scope.labels.items()) if at == len(self.steps)), None)
                if table is not None:
                    scope.tables[table] = tuple(word.strip() for word in statement.rest.split(","))

    def _next(self, i: int, step: Instruction, scope: _Scope) -> Iterator[int]:
        head = step.opcode[0]
        leaves = head in ("ret", "exit", "trap")
        if step.guard is not None or not (leaves or head in ("bra", "brx")):
            yield i + 1
        if head == "bra":
            yield from self._targets([o.text for o in step.operands if isinstance(o, Name)], scope)
        elif head == "brx":
            named = step.operands[-1]
            table = scope.table(named.text) if isinstance(named, Name) else None
            yield from self._targets(table or (), scope)

    def _targets(self, labels: tuple[str, ...] | list[str], scope: _Scope) -> Iterator[int]:
        at = [scope.label(name) for name in labels]
        if not at or None in at:
            yield from range(len(self.steps))
            return
        yield from (target for target in at if target is not None)

    def loops(self) -> list[list[Instruction]]:
        """The strongly connected parts that hold a cycle (Tarjan, without recursion)."""
        index: dict[int, int] = {}
        low: dict[int, int] = {}
        stack: list[int] = []
        on: set[int] = set()
        found: list[list[Instruction]] = []
        for root in range(len(self.steps)):
            if root in index:
                continue
            work = [(root, iter(self.after[root]))]
            index[root] = low[root] = len(index)
            stack.append(root)
            on.add(root)
            while work:
                at, following = work[-1]
                for to in following:
                    if to == len(self.steps):
                        continue
                    if to not in index:
                        index[to] = low[to] = len(index)
                        stack.append(to)
                        on.add(to)
                        work.append((to, iter(self.after[to])))
                        break
                    if to in on:
                        low[at] = min(low[at], index[to])
                else:
                    work.pop()
                    if work:
                        low[work[-1][0]] = min(low[work[-1][0]], low[at])
                    if low[at] == index[at]:
                        part = []
                        while True:
                            node = stack.pop()
                            on.discard(node)
                            part.append(node)
                            if node == at:
                                break
                        if len(part) > 1 or at in self.after[at]:
                            found.append([self.steps[i] for i in sorted(part)])
        return found
