"""BatchNorm layers folded into the convolutions before them, for networks that are only evaluated."""

import copy
from collections import Counter

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """A copy whose convolutions contain the BatchNorm that follows them: one pass over memory less for each layer.

    The function computed is the same up to rounding. A BatchNorm is left as it is where other layers read the output of
    the convolution too, or where one of the two is called more than once. A network that torch.fx cannot trace is
    returned as it is.

    Args:
        network: frozen, in evaluation mode.
    """
    try:
        folded = fx.symbolic_trace(copy.deepcopy(network))
    except Exception:  # whatever the network's own code raises when it meets a symbolic value
        return network
    modules = dict(folded.named_modules())
    calls = Counter(modules[str(node.target)] for node in folded.graph.nodes if node.op == "call_module")
    for node in list(folded.graph.nodes):
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not (isinstance(source, fx.Node) and source.op == "call_module" and len(source.users) == 1):
            continue
        convolution, norm = modules[str(source.target)], modules[str(node.target)]
        if not (type(convolution) is nn.Conv2d and type(norm) is nn.BatchNorm2d and norm.track_running_stats):
            continue
        if calls[convolution] > 1 or calls[norm] > 1:
            continue
        parent, _, name = str(source.target).rpartition(".")
        setattr(folded.get_submodule(parent), name, fuse_conv_bn_eval(convolution, norm))
        node.replace_all_uses_with(source)
        folded.graph.erase_node(node)
    folded.recompile()
    return folded
