"""PTX text to its structure and back: every node knows its place, so what is not edited stays as it was.

:func:`parse` checks structure, not meaning: an unknown instruction is read like any other, and a text
whose structure is not understood is refused with its line. Between two nodes that stand side by side
there is nothing but white space and comments. The grammar is that of the PTX ISA 9.0, as compilers
write it; the preprocessor's lines (``#``) and the ``@@DWARF`` of old are left out.
"""

from __future__ import annotations

import re

from miriam.elastic._ptx_operands import (
    LIST,
    NAME,
    Address,
    Expression,
    Group,
    Guard,
    Name,
    Not,
    Number,
    Operand,
    Pair,
    Vector,
    names,
    read_parts,
)
from miriam.elastic._ptx_statements import (
    Block,
    Declared,
    Directive,
    Function,
    Instruction,
    Label,
    Module,
    Statement,
    Variable,
    walk,
)
from miriam.elastic._ptx_tokens import TRIVIA, Kind, ReadError, Tokens
from miriam.errors import PtxError

__all__ = [
    "Address",
    "Block",
    "Declared",
    "Directive",
    "Expression",
    "Function",
    "Group",
    "Guard",
    "Instruction",
    "Label",
    "Module",
    "Name",
    "Not",
    "Number",
    "Operand",
    "Pair",
    "Statement",
    "Variable",
    "Vector",
    "names",
    "parse",
    "walk",
]

_NESTING = 64  # blocks within blocks

_LINKAGE = frozenset({".extern", ".visible", ".weak", ".common"})
_SPACES = frozenset({".reg", ".shared", ".local", ".param", ".global", ".const", ".tex", ".sreg"})
_VECTORS = {".v2": 2, ".v4": 4, ".v8": 8}

# What follows the name of a directive that ends without a mark; "~" is what may stand between its tokens.
_LINE_OF_SOURCE = (
    r"\d++~\d++~\d++"
    rf"(?>(?:~,~function_name\b~{NAME}(?>(?:~\+~\d++)?)~,~inlined_at\b~\d++~\d++~\d++)?)"
)
_OPEN_ENDED = {
    name: re.compile(rf"~({rest})(?![\w$.])".replace("~", TRIVIA), re.ASCII).match
    for name, rest in {
        ".version": r"\d{1,4}+\.\d{1,4}+",
        ".target": r"\w++(?>(?:~,~\w++)*)",
        ".address_size": r"\d{1,4}+",
        ".file": r'\d++~"[^"]*+"(?>(?:~,~\d++~,~\d++)?)',
        ".loc": _LINE_OF_SOURCE,
    }.items()
}

# The statements that make up nearly all of a body: whatever fails to match is read token by token.
_STATEMENT = re.compile(
    TRIVIA
    + rf"(?:(?:(@!?+{NAME})\s++)?([A-Za-z]\w*+(?>(?:(?:\.|::)\w++)*))(?>(?:\s++{LIST})?)\s*+;"
    + rf"|(\.loc\b~{_LINE_OF_SOURCE})(?![\w$.])".replace("~", r"\s*+")
    + rf"|({NAME})\s*+:)",
    re.ASCII,
).match
_OPCODE, _LINE, _LABEL = 2, 3, 4  # groups of it


def parse(text: str, name: str = "PTX") -> Module:
    """Read a PTX text.

    Parameters
    ----------
    text
        A whole module, without the NUL that some compilers put at its end.
    name
        What the text is called in errors.

    Raises
    ------
    PtxError
        The structure of the text is not understood; the message begins with ``NAME:LINE:``.
    """
    try:
        return _module(text, name)
    except ReadError as error:
        inside = text[: error.at] if error.at < len(text) else text[:-1]
        line = inside.count("\n") + 1
        raise PtxError(f"{name}:{line}: {error.what}", line) from None


def _module(text: str, name: str) -> Module:
    tokens = Tokens(text)
    items: list[Directive | Variable | Function] = []
    while tokens.kind != Kind.END:
        if len(items) < 2:
            tokens.expect((".version", ".target")[len(items)])
        items.append(_item(tokens))
        tokens.advance()
    header = {item.name: item.rest for item in items if isinstance(item, Directive)}
    if len(items) < 2:
        raise tokens.fault("'.version' and '.target'")
    major, minor = header[".version"].split(".")
    target = re.split(r"\W", header[".target"], maxsplit=1)[0]
    size = int(header.get(".address_size", "32"))
    return Module(text, name, (int(major), int(minor)), target, size, tuple(items))


# Each reader of a statement leaves the cursor on the statement's last token: what follows may be no token at all
# but a statement that the pattern takes whole.


def _item(tokens: Tokens) -> Directive | Variable | Function:
    start = tokens.start
    linkage = _linkage(tokens)
    if tokens.value in (".entry", ".func"):
        return _function(tokens, start, linkage)
    if linkage or tokens.value in _SPACES:
        return _variable(tokens, start, linkage)
    return _directive(tokens)


def _linkage(tokens: Tokens) -> tuple[str, ...]:
    words = []
    while tokens.value in _LINKAGE:
        words.append(tokens.value)
        tokens.advance()
    return tuple(words)


def _directive(tokens: Tokens) -> Directive:
    start, name, begin = tokens.start, tokens.value, tokens.end
    if tokens.kind != Kind.WORD:
        raise tokens.fault("a directive")
    if pattern := _OPEN_ENDED.get(name):
        match = pattern(tokens.text, begin)
        if match is None:
            raise ReadError(start, f"{name!r} is not followed by what belongs to it")
        tokens.end = match.end(1)
        return Directive(start, tokens.end, name, match[1])
    tokens.advance()
    if name == ".section":
        if tokens.kind not in (Kind.WORD, Kind.NAME):
            raise tokens.fault("the name of a section")
        tokens.advance()
        _braces(tokens)
        return Directive(start, tokens.end, name, tokens.text[begin : tokens.end].strip())
    _raw(tokens, ";")
    tokens.expect(";")
    return Directive(start, tokens.end, name, tokens.text[begin : tokens.start].strip())


def _raw(tokens: Tokens, stops: str) -> None:
    """Go to the first of some marks outside of parentheses and brackets; braces are refused."""
    closers: list[str] = []
    while closers or tokens.kind != Kind.MARK or tokens.value not in stops:
        if tokens.kind == Kind.END or tokens.value in "{};":
            raise tokens.fault(repr(closers[-1] if closers else stops[-1]))
        if tokens.value in "([":
            closers.append(")" if tokens.value == "(" else "]")
        elif tokens.value in ")]" and (not closers or closers.pop() != tokens.value):
            raise tokens.fault(repr(stops[-1]))
        tokens.advance()


def _braces(tokens: Tokens) -> None:
    """Go from an opening brace to the closing one; nothing between is looked at."""
    tokens.expect("{")
    start, depth = tokens.start, 1
    while depth:
        tokens.skip_plain()
        tokens.advance()
        if tokens.kind == Kind.END:
            raise ReadError(start, "'{' is not closed")
        if tokens.value == ";":
            raise tokens.fault("'}'")
        depth += (tokens.value == "{") - (tokens.value == "}")


def _variable(tokens: Tokens, start: int, linkage: tuple[str, ...], parameter: bool = False) -> Variable:
    """A declaration up to its ``;``; a parameter has one name, and the cursor goes behind it."""
    if tokens.value not in _SPACES:
        raise tokens.fault("a state space")
    space, type_, vector, align = tokens.value[1:], "", 0, 0
    tokens.advance()
    while tokens.kind == Kind.WORD:
        word = tokens.value
        tokens.advance()
        if word == ".align":
            align = tokens.take_count("an alignment")
        elif word == ".attribute":
            _parentheses(tokens)
        elif word == ".ptr":
            if tokens.value in _SPACES:
                tokens.advance()
            if tokens.take(".align"):
                tokens.take_count("an alignment")
        elif word in _VECTORS:
            vector = _VECTORS[word]
        elif type_:
            raise ReadError(tokens.before - len(word), f"expected a name, found {word[:40]!r}")
        else:
            type_ = word[1:]
    if not type_:
        raise tokens.fault("a type")
    names = [_declared(tokens)]
    if parameter:
        return Variable(start, tokens.before, linkage, space, type_, vector, align, tuple(names))
    _initializer(tokens)
    while tokens.take(","):
        names.append(_declared(tokens))
        _initializer(tokens)
    tokens.expect(";")
    return Variable(start, tokens.end, linkage, space, type_, vector, align, tuple(names))


def _declared(tokens: Tokens) -> Declared:
    start, name, count = tokens.start, tokens.take_name("a name"), None
    if tokens.take("<"):
        count = tokens.take_count("a number of registers")
        tokens.expect(">")
        tokens.advance()
    extents: list[int | None] = []
    while tokens.take("["):
        extents.append(None if tokens.value == "]" else tokens.take_count("an extent"))
        tokens.expect("]")
        tokens.advance()
    return Declared(start, tokens.before, name, count, tuple(extents))


def _initializer(tokens: Tokens) -> None:
    if not tokens.take("="):
        return
    if tokens.value == "{":
        _braces(tokens)
        tokens.advance()
    elif tokens.value in (",", ";"):
        raise tokens.fault("a value")
    else:
        _raw(tokens, ",;")


def _parentheses(tokens: Tokens) -> None:
    tokens.expect("(")
    tokens.advance()
    _raw(tokens, ")")
    tokens.advance()


def _function(tokens: Tokens, start: int, linkage: tuple[str, ...]) -> Function:
    kind = tokens.value[1:]
    tokens.advance()
    directives = _tuning(tokens)
    returns = _parameters(tokens) if tokens.value == "(" else ()
    name_start, name = tokens.start, tokens.take_name("the name of a function")
    parameters_end = tokens.before
    has_list = tokens.value == "("
    parameters = _parameters(tokens) if has_list else ()
    if has_list:
        parameters_end = tokens.before - 1
    directives += _tuning(tokens)
    body = None
    if tokens.value == "{":
        body = _body(tokens)
    elif tokens.value != ";":
        raise tokens.fault("'{' or ';'")
    return Function(
        start,
        tokens.end,
        name,
        kind,
        linkage,
        returns,
        parameters,
        directives,
        body,
        has_list,
        parameters_end,
        name_start,
    )


def _parameters(tokens: Tokens) -> tuple[Variable, ...]:
    tokens.advance()
    found: list[Variable] = []
    while tokens.value != ")":
        if found:
            tokens.expect(",")
            tokens.advance()
        found.append(_variable(tokens, tokens.start, (), parameter=True))
    tokens.advance()
    return tuple(found)


def _tuning(tokens: Tokens) -> tuple[Directive, ...]:
    """The directives of a function."""
    found: list[Directive] = []
    while tokens.kind == Kind.WORD:
        if tokens.value == ".pragma":
            found.append(_directive(tokens))
            tokens.advance()
            continue
        start, name, begin = tokens.start, tokens.value, tokens.end
        tokens.advance()
        if tokens.value == "(" and name == ".attribute":
            _parentheses(tokens)
        elif tokens.kind == Kind.NUMBER:
            tokens.take_count("a whole number")
            while tokens.take(","):
                tokens.take_count("a whole number")
        found.append(Directive(start, tokens.before, name, tokens.text[begin : tokens.before].strip()))
    return tuple(found)


def _body(tokens: Tokens) -> Block:
    """The block at the cursor, which goes to the closing brace; blocks in it stand on a stack of our own."""
    text, at = tokens.text, tokens.end
    opcodes: dict[str, tuple[str, ...]] = {}
    starts = [tokens.start]
    statements: list[Statement] = []
    levels = [statements]
    while True:
        match = _STATEMENT(text, at)
        if match is None:
            tokens.end = at
            tokens.advance()
            if tokens.value == "{":
                if len(starts) == _NESTING:
                    raise ReadError(tokens.start, f"more than {_NESTING} blocks stand in each other")
                starts.append(tokens.start)
                levels.append(statements := [])
            elif tokens.value == "}":
                block = Block(starts.pop(), tokens.end, tuple(levels.pop()))
                if not levels:
                    return block
                statements = levels[-1]
                statements.append(block)
            elif tokens.kind == Kind.END:
                raise ReadError(starts[-1], "'{' is not closed")
            else:
                statements.append(_statement(tokens))
            at = tokens.end
            continue
        at = match.end()
        if match.lastindex == _OPCODE:
            guarded, word = match.group(1, _OPCODE)
            opcode = opcodes.get(word)
            if opcode is None:
                opcode = opcodes[word] = tuple(word.split("."))
            if guarded is None:
                statements.append(Instruction(match.start(_OPCODE), at, None, opcode, text))
            else:
                start, end = match.span(1)
                guard = Guard(start, end, guarded.lstrip("@!"), guarded[1] == "!")
                statements.append(Instruction(start, at, guard, opcode, text))
        elif match.lastindex == _LABEL:
            statements.append(Label(match.start(_LABEL), at, match[_LABEL]))
        else:
            start = match.start(_LINE)
            statements.append(Directive(start, at, ".loc", text[start + 4 : at].strip()))


def _statement(tokens: Tokens) -> Label | Variable | Directive | Instruction:
    """A statement token by token."""
    start = tokens.start
    if tokens.kind == Kind.WORD:
        if tokens.value in _SPACES or tokens.value in _LINKAGE:
            return _variable(tokens, start, _linkage(tokens))
        return _directive(tokens)
    if tokens.kind == Kind.NAME:
        name = tokens.value
        tokens.advance()
        if tokens.value == ":" and "." not in name and ":" not in name:
            return Label(start, tokens.end, name)
        tokens.end = start
        tokens.advance()
    guard, opcode, _ = read_parts(tokens)
    return Instruction(start, tokens.end, guard, opcode, tokens.text)
