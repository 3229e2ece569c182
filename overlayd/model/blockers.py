"""What in other tables keeps our traffic from being forwarded.

Owns: reading somebody else's forward chains (Docker's, firewalld's) for a verdict that hits our links, and the words
for the rule that is missing.  Must not know: our own tables (`model.ruleset`), or how a ruleset is listed
(`linux.nft`).
"""

from typing import Any

from overlayd.model.objects import GROUP_BRIDGE, GROUP_DEVICE, GROUP_VETH, NFT_TABLE

_OUR_GROUPS = (GROUP_DEVICE, GROUP_BRIDGE, GROUP_VETH)
_OURS = "{ " + ", ".join(f"{group:#x}" for group in _OUR_GROUPS) + " }"
_VERDICTS = ("accept", "drop", "reject", "jump", "goto", "return")
_PLAIN = {"match", "counter", "log", *_VERDICTS}  # statements that can be read here; all others may be conditions

Chain = tuple[str, str, str]  # family, table, name
Rules = dict[Chain, list[list[dict[str, Any]]]]  # the statements of each rule, in order


def forward_blockers(listing: dict[str, Any]) -> list[str]:
    """What in a JSON listing of the whole ruleset keeps our traffic from being forwarded, with the missing rule.

    Our accept cannot overrule another table's drop, so each chain hooked at forward must let our links pass by
    itself.  A chain blocks when its policy is drop, or a rule without a condition drops or rejects, and no rule before
    accepts by `iifgroup` and by `oifgroup` all our link groups.  Unconditional jumps are followed.  One text for each
    chain.
    """
    rules: Rules = {}
    hooked: list[dict[str, Any]] = []
    for item in listing["nftables"]:
        if "rule" in item:
            rule = item["rule"]
            rules.setdefault((rule["family"], rule["table"], rule["chain"]), []).append(rule["expr"])
        elif item.get("chain", {}).get("hook") == "forward" and item["chain"]["table"] != NFT_TABLE:
            hooked.append(item["chain"])
    texts = []
    for chain in hooked:
        family, table, name = chain["family"], chain["table"], chain["name"]
        accepted: set[tuple[str, int]] = set()
        end = _follow(rules, (family, table, name), accepted)
        reason = {"drop": "drops", "reject": "rejects"}.get(end, "")
        if not end and chain.get("policy") == "drop":
            reason = "has policy drop"
        missing = [
            f"{key} {_OURS} accept"
            for key in ("iifgroup", "oifgroup")
            if not accepted.issuperset((key, group) for group in _OUR_GROUPS)
        ]
        if reason and missing:
            where = f"{family} {table} {name}"
            quoted = " and ".join(f'"{rule}"' for rule in missing)
            commands = "; ".join(f"nft insert rule {where} {rule}" for rule in missing)
            texts.append(f"table {family} {table} chain {name} {reason}: add {quoted} ahead of it ({commands})")
    return texts


def _follow(rules: Rules, chain: Chain, accepted: set[tuple[str, int]]) -> str:
    """Follow a chain: fill `accepted` with the (key, link group) that pass.

    Returns the verdict that ends the chain for every packet; "" when a packet can reach its end.
    """
    for expressions in rules.get(chain, ()):
        conditions = [part["match"] for part in expressions if "match" in part]
        opaque = any(not _PLAIN.intersection(part) for part in expressions)
        verdict = next((name for part in expressions for name in _VERDICTS if name in part), "")
        if verdict == "accept" and len(conditions) == 1 and not opaque:
            accepted.update(_groups(conditions[0]))
        elif conditions or opaque or not verdict:
            continue
        elif verdict in ("jump", "goto"):
            target = next(part[verdict]["target"] for part in expressions if verdict in part)
            end = _follow(rules, (*chain[:2], target), accepted)
            if end or verdict == "goto":
                return end
        elif verdict == "return":
            return ""
        else:
            return verdict
    return ""


def _groups(match: dict[str, Any]) -> set[tuple[str, int]]:
    """The link groups that one condition of a rule lets through, with its key: iifgroup or oifgroup."""
    left, right = match["left"], match["right"]
    key = left.get("meta", {}).get("key") if isinstance(left, dict) else None
    if key not in ("iifgroup", "oifgroup") or match["op"] not in ("==", "in"):
        return set()
    values = right["set"] if isinstance(right, dict) and "set" in right else [right]
    return {(key, int(value)) for value in values if isinstance(value, int) or str(value).isdigit()}
