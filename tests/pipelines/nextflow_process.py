"""As much of Nextflow as running the tasks of our processes takes: their blocks, and the Groovy in them."""

import re
from pathlib import Path

_TOKEN = re.compile(
    r"""\s*(?:(?P<double>"(?:[^"\\]|\\.)*")|(?P<single>'(?:[^'\\]|\\.)*')"""
    r"|(?P<name>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)|(?P<mark>\?:|==|[?:(),]))"
)
_BLOCK = re.compile(r"^    (input|output|when|script|stub):\n", re.M)


class Bag(dict):
    """A Groovy map: what is not there is null."""

    def __getattr__(self, name):
        return self.get(name)


class Memory:
    """``task.memory``."""

    def __init__(self, megabytes):
        self.toMega = lambda: megabytes


class Names(list):
    """Paths of an input: several are joined by spaces."""

    def __str__(self):
        return " ".join(self)


class Expression:
    """Evaluates the expressions that our scripts use: strings, names, calls, ``?:``, ``? :`` and ``==``."""

    def __init__(self, text, scope):
        self.tokens, self.scope, at = [], scope, 0
        while text[at:].strip():
            match = _TOKEN.match(text, at)
            assert match, f"cannot read {text[at:]!r}"
            self.tokens.append((match.lastgroup, match[match.lastgroup]))
            at = match.end()

    def value(self):
        found = self.choice()
        assert not self.tokens, f"left over: {self.tokens}"
        return found()

    def take(self, *marks):
        if self.tokens and self.tokens[0] in [("mark", m) for m in marks]:
            return self.tokens.pop(0)[1]
        return None

    # Each of these reads an expression and returns what evaluates it: of a choice only one side is.
    def choice(self):
        first = self.equal()
        if self.take("?:"):
            second = self.choice()
            return lambda: first() or second()
        if self.take("?"):
            yes = self.choice()
            assert self.take(":")
            no = self.choice()
            return lambda: yes() if first() else no()
        return first

    def equal(self):
        first = self.one()
        if self.take("=="):
            second = self.one()
            return lambda: str(first()) == str(second())
        return first

    def one(self):
        if self.take("("):
            inner = self.choice()
            assert self.take(")")
            return inner
        kind, text = self.tokens.pop(0)
        if kind == "single":
            return lambda: text[1:-1]
        if kind == "double":
            return lambda: filled(text[1:-1], self.scope)
        assert kind == "name", text
        arguments = None
        if self.take("("):
            arguments = []
            while not self.take(")"):
                arguments.append(self.choice())
                self.take(",")
        return lambda: self.look_up(text.split("."), arguments)

    def look_up(self, parts, arguments):
        value = self.scope[parts[0]]
        for part in parts[1:]:
            value = getattr(value, {"endsWith": "endswith"}.get(part, part))
        return value if arguments is None else value(*(argument() for argument in arguments))


def filled(text, scope):
    """Fill in ``${...}`` and undo the escapes of a Groovy string."""
    text = re.sub(r"(?<!\\)\$\{([^}]*)\}", lambda match: str(Expression(match[1], scope).value()), text)
    return text.replace("\\\\", "\\").replace("\\$", "$")


class Process:
    """A process of a module's ``main.nf``."""

    def __init__(self, path: Path):
        self.text = path.read_text()
        (self.name,) = re.findall(r"^process (\w+) \{", self.text, re.M)
        head, *parts = _BLOCK.split(self.text)
        self.head = head
        self.blocks = dict(zip(parts[::2], parts[1::2], strict=True))

    def inputs(self):
        """Name each input of each channel."""
        return [re.findall(r"(?:val|path)\(?\s*(\w+)", line) for line in self.blocks["input"].strip().splitlines()]

    def outputs(self):
        """Give (pattern, optional) of the files, by the channel's name."""
        found = {}
        for line in self.blocks["output"].strip().splitlines():
            emit = re.search(r"emit: (\w+)", line)[1]
            for pattern in re.findall(r'path\("([^"]+)"\)', line):
                found[emit] = (pattern, "optional: true" in line)
        return found

    def versions(self):
        """Give the command that prints the version."""
        ((quote, command),) = re.findall(r"eval\((\"|')(.*)\1\), topic: versions", self.blocks["output"])
        return command if quote == "'" else filled(command, {})

    def command(self, block, **scope):
        """Evaluate the definitions of ``script`` or ``stub`` and return the shell script and the names it defined."""
        scope = {"task": Bag(ext=Bag(), cpus=1), **scope}
        before, script, after = re.split(r'^    """\n', self.blocks[block], flags=re.M)
        assert after.strip(" \n}") == ""
        for line in before.strip().splitlines():
            line = line.strip()
            if definition := re.fullmatch(r"(?:def )?(\w+) = (.*)", line):
                scope[definition[1]] = Expression(definition[2], scope).value()
            elif condition := re.fullmatch(r"if \((.*?)\) error\((.*)\)", line):
                if Expression(condition[1], scope).value():
                    raise ValueError(Expression(condition[2], scope).value())
            else:
                raise AssertionError(f"cannot read {line!r}")
        return filled(script, scope), scope
