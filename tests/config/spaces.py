"""Random search-space files that are valid, and what the tests know of them on their own."""

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import annotated_types
import yaml
from hypothesis import strategies as st

from cifartune.config.effects import EFFECTS, FIXED, UNSEARCHED
from cifartune.config.fields import RecipeField, all_fields
from cifartune.config.networks import networks
from cifartune.config.parameters import NARROWEST

# Legal values where a field's type does not list them.
EXAMPLES: dict[str, list[Any]] = {
    "model.weights": ["none", "imagenet", "weights.pt"],
    "model.channels": ["default", "64/32/96", "16/16/32/64"],
    "model.depth": [10, 16, 22, 28, 40],
    "model.squeeze_excite": [False, True],
    "model.whitening": [False, True],
}

Tree = dict[str, Any]
Conditions = dict[str, list[Any]]

NETWORKS = [
    "resnet18",
    "resnet34",
    "speednet",
    "speednet_small",
    "efficientnet_b0",
    "convnext_pico",
]

FIELDS = {n: field for n, field in all_fields().items() if n not in FIXED | UNSEARCHED}

# Fields that others need come first, so that what is made valid stays so.
ORDER = sorted(
    FIELDS,
    key=lambda name: (
        not any(need.field == name for needs in EFFECTS.values() for need in needs),
        name != "augment.strength",
        name,
    ),
)


def bounds(field: RecipeField) -> tuple[Any, Any]:
    """The least and the largest legal value of a number, or one near to a bound that is not."""
    low, high = 0.0, 1.0
    tiny = 1 if field.kind is int else 1e-6
    for part in field.info.metadata:
        if isinstance(part, annotated_types.Ge):
            low = part.ge  # type: ignore[assignment]
        if isinstance(part, annotated_types.Gt):
            low = part.gt + tiny  # type: ignore[operator]
        if isinstance(part, annotated_types.Le):
            high = part.le  # type: ignore[assignment]
        if isinstance(part, annotated_types.Lt):
            high = part.lt - tiny  # type: ignore[operator]
    return field.kind(low), field.kind(high)


def is_listed(field: RecipeField) -> bool:
    """Whether the field is no range of numbers."""
    return field.kind is str or field.name in EXAMPLES


def words(field: RecipeField, pretrained: bool) -> list[Any]:
    if field.name == "model.name":
        return [name for name in NETWORKS if networks()[name].has_weights or not pretrained]
    legal = EXAMPLES.get(field.name) or [*field.words]
    return [word for word in legal if pretrained or word != "imagenet"] or legal


def values_of(field: RecipeField, pretrained: bool, most: int) -> st.SearchStrategy[Any]:
    """Legal values of a field."""
    if is_listed(field):
        return st.sampled_from(words(field, pretrained))
    low, high = bounds(field)
    if field.kind is int:
        return st.integers(low, min(high, most) if field.name == "batch_size" else high)
    return st.floats(low, high)


@st.composite
def entries(
    draw: st.DrawFn, field: RecipeField, pretrained: bool, most: int, conditional: bool, steps: bool
) -> Tree:
    """A parameter without its conditions."""
    values = values_of(field, pretrained, most)
    forms = ["values"]
    if not is_listed(field):
        forms += ["stepped"] if steps else ["stepped", "range", "log"]
    form = draw(st.sampled_from(forms))
    if form == "values":
        least = 1 if conditional else 2
        if is_listed(field) and len(words(field, pretrained)) < least:
            return {}
        choices = draw(st.lists(values, min_size=least, max_size=4, unique=True))
        return {"values": choices}
    if form == "stepped":
        return draw(stepped(field, most))
    low, high = bounds(field)
    if field.name == "batch_size":
        high = min(high, most)
    if form == "log":
        low = max(low, 1 if field.kind is int else 1e-6)
    if low >= high:
        return {}
    numbers: Any = st.integers if field.kind is int else st.floats
    first = draw(numbers(low, high))
    last = draw(numbers(first, high))
    if first >= last or last - first < NARROWEST * abs(last):
        return {}
    entry: Tree = {"min": first, "max": last}
    return entry | {"log": True} if form == "log" else entry


@st.composite
def stepped(draw: st.DrawFn, field: RecipeField, most: int) -> Tree:
    """A range with steps; of decimals, as people write them."""
    low, high = bounds(field)
    unit = Decimal(1) if field.kind is int else Decimal("0.01")
    first = int(Decimal(str(low)) / unit) + (low > 0 and field.kind is float)
    last = int(Decimal(str(high)) / unit)
    if field.name == "batch_size":
        last = min(last, most)
    if last <= first:
        return {}
    start = draw(st.integers(first, last - 1))
    step = draw(st.integers(1, min(10, last - start)))
    count = draw(st.integers(1, min(8, (last - start) // step)))
    number = int if field.kind is int else float
    return {
        "min": number(start * unit),
        "max": number((start + count * step) * unit),
        "step": number(step * unit),
    }


def listed(name: str, entry: Tree) -> list[Any] | None:
    """The values of a parameter that a condition can name."""
    if "values" in entry:
        return list(entry["values"])
    if "step" in entry:
        low, high, step = (Decimal(str(entry[key])) for key in ("min", "max", "step"))
        kind = FIELDS[name].kind
        return [kind(low + i * step) for i in range(int((high - low) / step) + 1)]
    if FIELDS[name].kind is int:
        return [entry["min"], (entry["min"] + entry["max"]) // 2, entry["max"]]
    return None


def needed(name: str, parameters: Mapping[str, Tree]) -> Conditions:
    """What the others must be for a parameter to exist, transitively."""
    found: Conditions = {}
    for other, wanted in parameters[name].get("when", {}).items():
        for key, allowed in {**needed(other, parameters), other: as_list(wanted)}.items():
            found[key] = [value for value in found.get(key, allowed) if value in allowed]
    return found


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@st.composite
def conditions(draw: st.DrawFn, parameters: Mapping[str, Tree]) -> Tree:
    """Conditions on some of the parameters that can be met together."""
    candidates = [name for name in parameters if listed(name, parameters[name])]
    if not candidates:
        return {}
    chosen = draw(st.lists(st.sampled_from(candidates), unique=True, max_size=3))
    when: Tree = {}
    for other in chosen:
        needs = needed(other, parameters)
        so_far = needed("new", {**parameters, "new": {"when": when}})
        met = [set(needs[key]) & set(so_far[key]) for key in needs.keys() & so_far.keys()]
        values = [
            value
            for value in listed(other, parameters[other]) or []
            if value in so_far.get(other, [value])
        ]
        clash = any(value not in so_far.get(other, [value]) for value in values)
        if not values or clash or not all(met):
            continue
        allowed = draw(st.lists(st.sampled_from(values), unique=True, min_size=1, max_size=3))
        when[other] = allowed[0] if len(allowed) == 1 and draw(st.booleans()) else allowed
    return when


def has_effect(name: str, parameters: Mapping[str, Tree], base: Mapping[str, Any]) -> bool:
    """Whether one of the needs of a field can be met; see `EFFECTS`."""
    needs, conds = EFFECTS.get(name, []), needed(name, parameters)

    def possible(field: str) -> list[Any]:
        if field in conds:
            return conds[field]
        if field not in parameters:
            return [base[field]]
        entry = parameters[field]
        values = entry.get("values") or [entry["min"], entry["max"]]
        return [*values, base[field]] if entry.get("when") else values

    return not needs or any(need.is_met_by(v) for need in needs for v in possible(need.field))


def holds(name: str, point: Mapping[str, Any], parameters: Mapping[str, Tree]) -> bool:
    """Whether a parameter exists at a point, read from the file's own words."""
    return all(
        other in point
        and holds(other, point, parameters)
        and any(are_equal(point[other], value) for value in as_list(wanted))
        for other, wanted in parameters[name].get("when", {}).items()
    )


def are_equal(value: Any, other: Any) -> bool:
    """Equal, up to what steps of 0.01 add up to."""
    if isinstance(value, str) or isinstance(other, str):
        return bool(value == other)
    return math.isclose(value, other, rel_tol=1e-9)


@st.composite
def members(draw: st.DrawFn, name: str, entry: Tree) -> Any:
    """A value that a parameter can have."""
    if values := listed(name, entry):
        return draw(st.sampled_from(values))
    return draw(st.floats(entry["min"], entry["max"]))


def nested(flat: Mapping[str, Any]) -> Tree:
    """Sections, of dotted names."""
    tree: Tree = {}
    for name, value in flat.items():
        *sections, key = name.split(".")
        target = tree
        for section in sections:
            target = target.setdefault(section, {})
        target[key] = value
    return tree


@st.composite
def valid_spaces(draw: st.DrawFn, sampler: str | None = None, most_parameters: int = 10) -> Tree:
    """The data of a valid file."""
    data: Tree = {}
    if draw(st.booleans()):
        data["data"] = draw(image_counts())
    images = data.get("data", {})
    most = images.get("train_subset") or 50_000 - images.get("validation", 5000)
    sampler = sampler or draw(st.sampled_from(["random", "tpe", "qmc", "gp", "cmaes", "grid"]))
    pretrained = draw(st.booleans())
    base = {name: field.default for name, field in FIELDS.items()}
    for name in draw(st.sets(st.sampled_from(ORDER))):
        base[name] = draw(values_of(FIELDS[name], pretrained, most))
    if pretrained and not networks()[base["model.name"]].has_weights:
        base["model.name"] = "resnet34"
    base["batch_size"] = min(base["batch_size"], most)
    parameters: dict[str, Tree] = {}
    chosen = draw(st.sets(st.sampled_from(ORDER), min_size=1, max_size=most_parameters))
    for name in sorted(chosen, key=ORDER.index):
        when = draw(conditions(parameters)) if parameters else {}
        entry = draw(entries(FIELDS[name], pretrained, most, bool(when), sampler == "grid"))
        if name == "augment.strength" and not base["augment.crop"]:
            base["augment.crop"] = 4
        fitting = [
            {**entry, **({"when": conds} if conds else {})}
            for conds in ([when, {}] if len(entry.get("values", [0, 0])) > 1 else [when])
        ]
        for candidate in fitting:
            if entry and has_effect(name, {**parameters, name: candidate}, base):
                parameters[name] = candidate
                base[name] = draw(members(name, candidate))
                break
    # A baseline that was drawn later can take the effect of what was there before.
    while idle := [name for name in parameters if not has_effect(name, parameters, base)]:
        remove(idle[0], parameters)
    data = {"name": draw(st.from_regex(r"[a-z][a-z0-9_.-]{0,20}", fullmatch=True)), **data}
    data["base"] = nested(base)
    if parameters:
        data["parameters"] = draw(st.permutations(list(parameters.items())).map(dict))
    data |= draw(targets(sampler))
    points = draw(st.lists(points_of(parameters, base), max_size=3)) if parameters else []
    data["points"] = unlike(points, parameters, base)
    first = 1 + len(data["points"])
    data["search"] = {"sampler": sampler, "num_trials": draw(st.integers(max(4, first), 64))}
    data |= {"scheduler": draw(schedulers(data)), **draw(extras())}
    return data


def remove(name: str, parameters: dict[str, Tree]) -> None:
    """Takes out a parameter and all that depend on it."""
    for other in [n for n, entry in parameters.items() if name in entry.get("when", {})]:
        if other in parameters:
            remove(other, parameters)
    parameters.pop(name, None)


@st.composite
def image_counts(draw: st.DrawFn) -> Tree:
    validation = draw(st.integers(10, 40_000))
    subset = draw(st.none() | st.integers(10, 50_000 - validation - 1).filter(lambda n: n < 49_990))
    return {"validation": validation, "train_subset": subset}


@st.composite
def points_of(draw: st.DrawFn, parameters: Mapping[str, Tree], base: Mapping[str, Any]) -> Tree:
    """A point: some of the parameters that exist there, the rest as in the baseline."""
    given: Tree = {}
    point: Tree = {}
    for name in sorted(parameters, key=ORDER.index):
        if not holds(name, point, parameters):
            continue
        point[name] = base[name]
        if draw(st.booleans()):
            point[name] = given[name] = draw(members(name, parameters[name]))
    return given


def unlike(
    points: Sequence[Tree], parameters: Mapping[str, Tree], base: Mapping[str, Any]
) -> list[Tree]:
    """The points that differ from the baseline and from each other."""
    seen = [whole({}, parameters, base)]
    kept = []
    for given in points:
        if (point := whole(given, parameters, base)) not in seen:
            seen.append(point)
            kept.append(given)
    return kept


def whole(given: Tree, parameters: Mapping[str, Tree], base: Mapping[str, Any]) -> Tree:
    point: Tree = {}
    for name in sorted(parameters, key=ORDER.index):
        if holds(name, point, parameters):
            point[name] = given.get(name, base[name])
    return point


@st.composite
def targets(draw: st.DrawFn, sampler: str) -> Tree:
    """One objective or several; one of them is measured at each epoch."""
    modes = {"val_accuracy": "max", "val_loss": "min", "train_loss": "min", "flops": "min"}
    if draw(st.booleans()):
        metric = draw(st.sampled_from(["val_accuracy", "val_loss"]))
        return {"objective": {"metric": metric, "mode": modes[metric]}}
    most = 1 if sampler == "cmaes" else 3
    metrics = draw(
        st.lists(st.sampled_from(sorted(modes)), unique=True, min_size=1, max_size=most).filter(
            lambda found: found != ["flops"]
        )
    )
    found: Tree = {"objectives": [{"metric": metric} for metric in metrics]}
    if metrics[0] == "flops" or draw(st.booleans()):
        found["scheduler"] = {"metric": next(m for m in metrics if m != "flops")}
    return found


@st.composite
def schedulers(draw: st.DrawFn, data: Tree) -> Tree:
    entry = data.get("parameters", {}).get("epochs", {})
    epochs = max([data["base"]["epochs"], *entry.get("values", [entry.get("max", 1)])])
    if "stopping.epoch" not in data.get("parameters", {}):
        epochs = min(epochs, data["base"].get("stopping", {}).get("epoch") or epochs)
    name = draw(st.sampled_from(["asha", "hyperband", "median", "none"]))
    settings: Tree = {**data.get("scheduler", {}), "name": name}
    settings["grace_period"] = draw(st.integers(1, epochs))
    if name == "hyperband":
        settings["reduction_factor"] = 2
        rungs, rung = 0, settings["grace_period"]
        while rung <= epochs:
            rungs, rung = rungs + 1, rung * 2
        settings["brackets"] = draw(st.integers(1, max(1, min(10, rungs - 1))))
    return settings


@st.composite
def extras(draw: st.DrawFn) -> Tree:
    """Sections that depend on no other."""
    found: Tree = {}
    if draw(st.booleans()):
        least = draw(st.integers(0, 10**6))
        found["constraints"] = {"params": {"min": least, "max": least + 5}, "flops": {"max": 1e9}}
    if draw(st.booleans()):
        found["warm_start"] = ["earlier", "runs/other"]
    if draw(st.booleans()):
        found["refit"] = {"top_k": draw(st.integers(1, 9)), "folds": draw(st.integers(2, 20))}
    if draw(st.booleans()):
        found["resources"] = {
            "cpus": draw(st.sampled_from(["auto", 1, 0.5])),
            "gpus": 0,
            "epoch_timeout": draw(st.sampled_from(["auto", 90, "2h"])),
        }
    return found


ALIASES = {"min": ["lower", "minval"], "max": ["upper", "maxval"]}


@st.composite
def texts(draw: st.DrawFn, spaces: st.SearchStrategy[Tree]) -> tuple[str, Tree]:
    """A file, with some keys under their other names, and its data under their own."""
    data = draw(spaces)
    parameters = {
        name: {
            draw(st.sampled_from([key, *ALIASES.get(key, [])])): value
            for key, value in entry.items()
        }
        for name, entry in data.get("parameters", {}).items()
    }
    search = dict(data["search"])
    key = draw(st.sampled_from(["num_trials", "num_samples", "max_trials"]))
    search[key] = search.pop("num_trials")
    renamed = {**data, "search": search, **({"parameters": parameters} if parameters else {})}
    return yaml.safe_dump(renamed, sort_keys=False), data
