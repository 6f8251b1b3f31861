"""On the path of a process, lets accelerate shard on the CPU, which it does on GPUs only.

Without this, a training that asks for FSDP2 or DeepSpeed runs as plain data parallelism there.
"""

import importlib.abc
import importlib.util
import os
import sys

os.environ["DS_ACCELERATOR"] = "cpu"


def change_state(state):  # type: ignore[no-untyped-def]
    """The processes that the CPU has count as GPUs where a plugin asks which way to shard."""
    plain = state.AcceleratorState.__init__

    def init(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        shared, deepspeed = state.PartialState._shared_state, kwargs.get("deepspeed_plugin") is not None
        sharded = deepspeed or kwargs.get("fsdp_plugin") is not None
        if sharded and shared.get("distributed_type") == state.DistributedType.MULTI_CPU:
            shared["distributed_type"] = state.DistributedType.MULTI_GPU
            os.environ.pop("ACCELERATE_USE_CPU", None)
            if deepspeed:
                os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        plain(self, *args, **kwargs)

    state.AcceleratorState.__init__ = init


def change_plugin(dataclasses):  # type: ignore[no-untyped-def]
    """DeepSpeed knows the processes before a model is loaded, as on a GPU."""
    plain = dataclasses.DeepSpeedPlugin.__post_init__

    def init(self):  # type: ignore[no-untyped-def]
        from deepspeed import comm

        comm.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
        plain(self)

    dataclasses.DeepSpeedPlugin.__post_init__ = init


def change_fit(fit):  # type: ignore[no-untyped-def]
    """A run is not refused for what works here."""
    fit.not_shared_out = lambda *args: None


CHANGES = {
    "accelerate.state": change_state,
    "accelerate.utils.dataclasses": change_plugin,
    "spa_recipes.run.fit": change_fit,
}


class AfterImport(importlib.abc.MetaPathFinder):
    """Makes each change once its module is imported; nothing else pays for the import."""

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        change = CHANGES.pop(name, None)
        if change is None:
            return None
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        run = spec.loader.exec_module
        setattr(spec.loader, "exec_module", lambda module: (run(module), change(module)))  # noqa: B010
        return spec


sys.meta_path.insert(0, AfterImport())
