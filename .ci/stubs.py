"""Stubs (.pyi) and py.typed for the wheel: what a type checker needs to know.

Read at run time, the modules are fine. A checker stumbles over three habits of notebooks: methods
that `@patch` adds to a class, perhaps from another module; functions that become methods by
assignment; and `width:int=None`, which is short for `width:int|None=None`. The stubs say all this
in the checker's way. `setup.py` writes them when a wheel is built: they are never out of date."""

import ast
from pathlib import Path


def optional(arg, default):
    "An argument whose default is None may be None"
    none = arg.annotation and isinstance(default, ast.Constant) and default.value is None
    return (
        ast.arg(arg.arg, ast.BinOp(arg.annotation, ast.BitOr(), ast.Constant(None)))
        if none
        else arg
    )


def header(f, name=None, decorators=()):
    "A function as a stub: its header, with defaults hidden"
    a = f.args
    fill = [None] * (len(a.args) - len(a.defaults))
    dots = ast.Constant(...)
    args = ast.arguments(
        a.posonlyargs,
        [optional(*o) for o in zip(a.args, fill + a.defaults)],
        a.vararg,
        [optional(*o) for o in zip(a.kwonlyargs, a.kw_defaults)],
        [d and dots for d in a.kw_defaults],
        a.kwarg,
        [dots] * len(a.defaults),
    )
    return ast.FunctionDef(
        name or f.name, args, [ast.Expr(ast.Constant(...))], list(decorators), f.returns
    )


def attributes(cls):
    "Names that the methods of a class assign to self"
    return dict.fromkeys(
        n.attr
        for n in ast.walk(cls)
        if isinstance(n, ast.Attribute)
        and isinstance(n.ctx, ast.Store)
        and isinstance(n.value, ast.Name)
        and n.value.id == 'self'
    )


def any_(name):
    return ast.AnnAssign(ast.Name(name), ast.Name('Any'), None, 1)


def named(n):
    return [
        o.id for t in n.targets for o in getattr(t, 'elts', [t]) if isinstance(o, ast.Name)
    ]  # what an assignment names


def member(n):
    "The stubs of one statement in a class"
    if isinstance(n, ast.AnnAssign):
        return [
            ast.AnnAssign(
                n.target,
                optional(ast.arg(n.target.id, n.annotation), n.value).annotation,
                n.value and ast.Constant(...),
                1,
            )
        ]
    if isinstance(n, ast.Assign):
        return [any_(o) for o in named(n)]
    if not isinstance(n, ast.FunctionDef):
        return []
    decorators = [ast.unparse(d) for d in n.decorator_list]
    return [
        header(
            n,
            decorators=[
                ast.Name({'cached_property': 'property'}.get(d, d))
                for d in decorators
                if d in ('property', 'staticmethod', 'classmethod', 'cached_property')
            ],
        )
    ]


def class_stub(cls, added):
    "A class: fields, methods, those that other cells added, and `Any` for what it keeps in self"
    body = [o for n in cls.body for o in member(n)] + added
    names = {n.name if isinstance(n, ast.FunctionDef) else n.target.id for n in body}
    body = [any_(o) for o in attributes(cls) if o not in names] + body
    return ast.ClassDef(
        cls.name,
        cls.bases,
        [],
        body or [ast.Expr(ast.Constant(...))],
        [d for d in cls.decorator_list if 'dataclass' in ast.unparse(d)],
    )


def patch_of(f):
    return next((o for d in f.decorator_list if (o := ast.unparse(d)).startswith('patch')), None)


def patched(f):
    "(class, method) of a function that `@patch` adds to a class"
    return ast.unparse(f.args.args[0].annotation), header(
        f, decorators=[ast.Name('property')] if 'as_prop' in patch_of(f) else []
    )


def assigned(n, functions):
    "(class, method) of each `Class.name = function`, also as a staticmethod, in an assignment"
    targets = n.targets[0].elts if isinstance(n.targets[0], ast.Tuple) else n.targets
    values = n.value.elts if isinstance(n.value, ast.Tuple) else [n.value]
    for t, v in zip(targets, values):
        if not (isinstance(t, ast.Attribute) and isinstance(t.value, ast.Name)):
            continue
        static = isinstance(v, ast.Call) and ast.unparse(v.func) == 'staticmethod'
        f = functions.get(ast.unparse(v.args[0] if static else v))
        if f:
            yield t.value.id, header(f, t.attr, [ast.Name('staticmethod')] if static else [])


def absolute(n, module):
    "An import of `module` as it reads in any other"
    if not getattr(n, 'level', 0):
        return n
    return ast.ImportFrom(
        '.'.join([*f'nfig.{module}'.split('.')[: -n.level], *filter(None, [n.module])]), n.names, 0
    )


def needed(fs, tree, module):
    "Imports for the headers of methods that `module` adds to a class of another module"
    used = {n.id for f in fs for n in ast.walk(f) if isinstance(n, ast.Name)}
    for n in tree.body:
        if isinstance(n, (ast.Import, ast.ImportFrom)) and (
            names := [a for a in n.names if (a.asname or a.name) in used]
        ):
            yield absolute(type(n)(**{**vars(n), 'names': names}), module)
        elif isinstance(n, ast.ClassDef) and n.name in used:
            yield ast.ImportFrom('nfig.' + module, [ast.alias(n.name)], 0)


def stubs(folder) -> dict:  # {name of a module: text of its stub}
    "Stubs of all modules in a folder"
    trees = {
        '.'.join(p.relative_to(folder).with_suffix('').parts): ast.parse(
            p.read_text(encoding='utf-8')
        )
        for p in sorted(Path(folder).rglob('*.py'))
        if p.stem != '_modidx'
    }
    home = {n.name: k for k, t in trees.items() for n in t.body if isinstance(n, ast.ClassDef)}
    added, imports = {}, {k: [] for k in trees}
    for k, t in trees.items():
        functions = {n.name: n for n in t.body if isinstance(n, ast.FunctionDef)}
        methods = [patched(n) for n in t.body if isinstance(n, ast.FunctionDef) and patch_of(n)]
        for c, f in methods + [
            p for n in t.body if isinstance(n, ast.Assign) for p in assigned(n, functions)
        ]:
            added.setdefault(c, []).append(f)
            if home.get(c, k) != k:
                imports[home[c]] += [
                    o for o in needed([f], t, k) if getattr(o, 'module', None) != 'nfig.' + home[c]
                ]
    return {k: module_stub(t, added, imports[k]) for k, t in trees.items()}


def module_stub(tree, added, imports):
    "The stub of one module; what it imports by name can be imported from it, as at run time"
    body = [ast.ImportFrom('typing', [ast.alias('Any')], 0), *imports]
    for n in [o for top in tree.body for o in (top.body if isinstance(top, ast.If) else [top])]:
        if isinstance(n, ast.Import):
            body.append(n)
        elif isinstance(n, ast.ImportFrom):
            body.append(
                ast.ImportFrom(
                    n.module, [ast.alias(a.name, a.asname or a.name) for a in n.names], n.level
                )
            )
        elif isinstance(n, ast.ClassDef):
            body.append(class_stub(n, added.get(n.name, [])))
        elif isinstance(n, ast.FunctionDef) and n.name == '__getattr__':
            pass  # what it finds is imported above it, and nothing else exists
        elif isinstance(n, ast.FunctionDef) and not patch_of(n):
            kept = [d for d in n.decorator_list if 'dataclass_transform' in ast.unparse(d)]
            body.append(header(n, decorators=kept))
        elif isinstance(n, ast.Assign) and ast.unparse(n.value).startswith('Annotated['):
            body.append(n)  # a type with a range is a type
        elif isinstance(n, ast.Assign):
            body += [any_(o) for o in named(n) if o != '__all__']
    return '\n'.join(dict.fromkeys(ast.unparse(ast.fix_missing_locations(n)) for n in body)) + '\n'


def write_stubs(folder, to):
    "Write the stubs of the modules in `folder`, and py.typed, to another folder"
    for k, text in stubs(folder).items():
        path = Path(to) / f"{k.replace('.', '/')}.pyi"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding='utf-8')
    (Path(to) / 'py.typed').touch()
