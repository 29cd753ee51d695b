"""A plan against a cluster file: whether each training can ever be placed, whether it fits its cards, hours and price.

    hours    FLOP of the plan / (workers x peak of the card x MFU); the MFU is stated, and unknown before something is measured
    price    nodes x hours x price an hour, from the table in the cluster file that its user edits; spot nodes are cheaper
    storage  training state of the checkpoints that are kept, and the tokens: what the store must hold while it trains

Left out: corpus and tokens before training, scoring, the minutes in which nodes start, idle time, what a lost node costs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medschool.cluster.memory import second_copy_bytes, training_memory
from medschool.cluster.offer import NodeType, node_types, nodes_for
from medschool.errors import PlanError
from medschool.plan import Course, Plan
from medschool.procedure import Phase, row_tokens, training
from medschool.recipe.cluster import Cluster
from medschool.recipe.training import Shape
from medschool.train.throughput import peak_flops
from medschool.train.zero import micro_batch_rows

STATED_MFU = 0.4
"""Taken where nothing has been measured: what LLaMA-sized models reach on A100s (PaLM, appendix B, lists 21% to 46%)."""
ROOM = 0.95
"""Share of a card's memory that a training may be planned to take: torch's context and gaps in its allocator take the rest."""
OFFLOADS: tuple[tuple[str, ...], ...] = ((), ("optimizer",), ("optimizer", "parameters"))


@dataclass(frozen=True)
class Need:
    """What one training takes of a cluster."""

    stage: str
    nodes: dict[str, int]
    """Nodes by type, as Ray's autoscaler would start them."""
    card: str | None
    """The accelerator it trains on, with its memory in GiB; None where it has none or the file does not say."""
    memory_share: float | None
    """Estimated peak over the memory of the card."""
    hours: float | None
    usd: float | None


@dataclass(frozen=True)
class Forecast:
    """Of all trainings that are paid for, in the plan's order."""

    needs: tuple[Need, ...]
    mfu: float
    checkpoint_bytes: int
    token_bytes: int

    def as_json(self) -> dict[str, Any]:
        return {
            "trainings": [vars(need) for need in self.needs],
            "mfu_stated": self.mfu,
            "storage_bytes": {"checkpoints": self.checkpoint_bytes, "tokens": self.token_bytes},
            "hours": _sum([need.hours for need in self.needs]),
            "usd": _sum([need.usd for need in self.needs]),
        }

    def lines(self) -> list[str]:
        text = [f"on this cluster, at a stated MFU of {self.mfu:.0%}:"]
        for need in self.needs:
            nodes = ", ".join(f"{count} x {name}" for name, count in need.nodes.items())
            fits = f", {need.memory_share:.0%} of {need.card}" if need.memory_share is not None else ""
            text.append(f"    {need.stage}: {nodes}{fits}, {_hours(need.hours)}, {_usd(need.usd)}")
        total = self.as_json()
        text.append(f"    together {_hours(total['hours'])}, {_usd(total['usd'])}, one after the other")
        gib = self.checkpoint_bytes / 2**30, self.token_bytes / 2**30
        return [*text, f"    storage: {gib[0]:,.0f} GiB of checkpoints, {gib[1]:,.0f} GiB of tokens"]


def forecast(plan: Plan, config: Mapping[str, Any], shape: Shape | None, mfu: float = STATED_MFU) -> Forecast:
    """What the plan's trainings take of the cluster of this file.

    Raises PlanError where one can never be placed, or fits no card of the file; the message says what would.
    """
    types = {each.name: each for each in node_types(config)}
    paid = [course for course in plan.courses if course.shared_with is None]
    needs = tuple(_need(plan, course, config, types, shape, mfu) for course in paid)
    tokens = sum(course.tokens or 0 for course in paid)
    width = 2 if shape and shape.vocab_size <= 2**16 else 4
    state = (
        14 if plan.recipe.model.dtype == "bf16" else 16
    )  # weights, their fp32 copy in bf16, two moments (Rajbhandari et al. 2020)
    kept = plan.recipe.cluster.kept_checkpoints * state * (plan.parameters or 0)
    return Forecast(needs, mfu, kept, width * tokens)


def _need(
    plan: Plan, course: Course, config: Mapping[str, Any], types: Mapping[str, NodeType], shape: Shape | None, mfu: float
) -> Need:
    spec = plan.recipe.cluster
    worker = {"CPU": float(spec.cpus_per_worker), **({"GPU": float(spec.gpus_per_worker)} if spec.gpus_per_worker else {})}
    workers, feed = [worker] * spec.fewest_workers, [{"CPU": 1.0}] * spec.data_cpus
    nodes = nodes_for(config, workers, spec.node_labels, feed)
    if nodes is None:
        offered = "; ".join(f"{each.most} x {each.name} ({_resources(each.resources)})" for each in types.values())
        raise PlanError(
            f"{course.stage} needs {len(workers)} workers of {_resources(worker)}{_labelled(spec.node_labels)} and "
            f"{spec.data_cpus} CPUs for its feed; "
            f"the cluster file can never hold them: {offered}",
            "lower cluster.num_workers, or raise max_workers in the cluster file",
            "cluster.num_workers",
        )
    trained_on = nodes_for(config, workers, spec.node_labels) or {}
    node = next((types[name] for name in trained_on if spec.gpus_per_worker), None)
    share = _memory_share(plan, course, node, shape, sum(trained_on.values())) if node else None
    hours = _hours_of(course, node, spec, plan.recipe.model.dtype, mfu)
    prices = [types[name].usd_per_hour for name in nodes]
    usd = None
    if hours is not None and None not in prices:
        usd = hours * sum(count * (types[name].usd_per_hour or 0.0) for name, count in nodes.items())
    card = None if node is None or not node.accelerator_bytes else f"{node.accelerator} ({node.accelerator_bytes / 2**30:g} GiB)"
    return Need(course.stage, nodes, card, share, hours, usd)


def _memory_share(plan: Plan, course: Course, node: NodeType, shape: Shape | None, machines: int) -> float | None:
    """Estimated peak over the card's memory. Raises PlanError beyond ROOM, with settings that fit."""
    if course.memory is None or shape is None or not node.accelerator_bytes:
        return None
    spec = plan.recipe.cluster
    needed = course.memory.peak_bytes + second_copy_bytes(shape, spec, plan.recipe.model.dtype, spec.fewest_workers, machines)
    share = needed / node.accelerator_bytes
    if share <= ROOM:
        return round(share, 3)
    phase: Phase = "pretrain" if course.stage.startswith("pretrain/") else "instruct"
    found = settings_that_fit(plan, phase, shape, node.accelerator_bytes, machines)
    remedy = (
        f"set {found}"
        if found
        else "take a larger card, more workers, or shorter rows; no ZeRO stage, offload or micro-batch fits"
    )
    raise PlanError(
        f"{course.stage} needs {needed / 2**30:.1f} GiB a worker, {node.accelerator} has "
        f"{node.accelerator_bytes / 2**30:g} GiB, of which {ROOM:.0%} may be planned for",
        remedy,
        "cluster.zero_stage",
    )


def settings_that_fit(plan: Plan, phase: Phase, shape: Shape, card_bytes: int, machines: int = 1) -> str | None:
    """The first settings that fit, the fastest first: less offload, then more rows at once, then a lower stage; None for none."""
    recipe, length = plan.recipe, row_tokens(plan.recipe, phase)
    workers = recipe.cluster.fewest_workers
    rows = micro_batch_rows(recipe, phase, workers)
    smaller = [size for size in range(rows, 0, -1) if rows % size == 0]
    for offload in OFFLOADS:
        for size in smaller:
            for stage in (1, 2, 3):
                if "parameters" in offload and stage < 3:
                    continue
                spec = recipe.cluster.model_copy(
                    update={"zero_stage": stage, "offload": offload, "activation_checkpointing": True}
                )
                need = training_memory(
                    shape, spec, recipe.model.dtype, size * length, length, workers, training(recipe, phase).lora
                )
                second = second_copy_bytes(shape, spec, recipe.model.dtype, workers, machines)
                if need.peak_bytes + second <= ROOM * card_bytes:
                    return (
                        f"cluster.zero_stage={stage}, cluster.offload=[{','.join(offload)}], "
                        f"cluster.micro_batch_tokens={size * length}, cluster.activation_checkpointing=true"
                    )
    return None


def _hours_of(course: Course, node: NodeType | None, spec: Cluster, dtype: str, mfu: float) -> float | None:
    peak = peak_flops(node.accelerator, dtype) if node and node.accelerator else None
    if course.flops is None or peak is None:
        return None
    return course.flops / (spec.fewest_workers * peak * mfu) / 3600


def _labelled(labels: Mapping[str, str]) -> str:
    return " on nodes with " + ", ".join(f"{name}={value}" for name, value in labels.items()) if labels else ""


def _resources(of: Mapping[str, float]) -> str:
    return ", ".join(f"{count:g} {name}s" for name, count in of.items())


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _hours(value: float | None) -> str:
    return "hours unknown" if value is None else f"{value:,.1f} hours" if value < 72 else f"{value / 24:,.1f} days"


def _usd(value: float | None) -> str:
    return "price unknown" if value is None else f"{value:,.0f} USD"
