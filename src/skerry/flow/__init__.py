"""Information flow: what can reach what over the flows a policy allows.

The library in a notebook; docs/flow.md says what each answer means:

    from skerry.flow import Options, policy_graph, prove, reach
    from skerry.policy.source import load_stack

    graph = policy_graph(load_stack(["policy.xml"]), Options(exclude="bookkeeping-a"))
    graph.named(reach(graph, "bank-a"))
    prove(graph, "bank-a -/-> bank-b except broker").holds
"""

from skerry.flow.claim import Claim, parse_claim, parse_claims
from skerry.flow.cut import (
    Channel,
    ChannelCut,
    FlowCut,
    LabelCut,
    cut_channels,
    cut_flows,
    cut_labels,
)
from skerry.flow.graph import About, Graph
from skerry.flow.permission_map import PermissionMap, read_map, shipped_map
from skerry.flow.policy import Options, policy_graph
from skerry.flow.proof import Proof, certificate, prove
from skerry.flow.search import (
    all_shortest_paths,
    distance,
    reach,
    reach_back,
    shortest_path,
    simple_paths,
)
from skerry.flow.verify import Unproven, check

__all__ = [
    "About",
    "Channel",
    "ChannelCut",
    "Claim",
    "FlowCut",
    "Graph",
    "LabelCut",
    "Options",
    "PermissionMap",
    "Proof",
    "Unproven",
    "all_shortest_paths",
    "certificate",
    "check",
    "cut_channels",
    "cut_flows",
    "cut_labels",
    "distance",
    "parse_claim",
    "parse_claims",
    "policy_graph",
    "prove",
    "reach",
    "reach_back",
    "read_map",
    "shipped_map",
    "shortest_path",
    "simple_paths",
]
