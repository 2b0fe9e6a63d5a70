"""An MCP client that shares no code with the server: the official Python SDK.

Usage: client.py http URL | client.py stdio PROGRAM [ARGUMENT...]
Runs the same story in both protocol eras and ends with exit code 1 at the first thing that is not as promised.
"""

import asyncio
import json
import sys

from mcp import Client
from mcp.client.stdio import StdioServerParameters

TOOLS = ["diagnose", "scan", "get_evidence", "explain_condition", "probe"]
SUMMARY_BYTES = 16 * 1024


def check(fact, *shown):
    if not fact:
        raise AssertionError(" ".join(str(part) for part in shown))


def text_of(result):
    return "".join(block.text for block in result.content)


async def story(client):
    check("unknown" in (client.instructions or ""), "instructions say nothing of unknown:", client.instructions)

    tools = (await client.list_tools()).tools
    check([tool.name for tool in tools] == TOOLS, "tools are", [tool.name for tool in tools])
    for tool in tools:
        # What sends packets says so.
        sends = tool.name == "probe"
        check(tool.annotations.read_only_hint != sends, tool.name, "tells something else about sending")
        check(not tool.annotations.destructive_hint, tool.name, "is destructive")
        check(tool.output_schema, tool.name, "has no output schema")

    # The SDK validates structured content against the tool's output schema before it hands a result over.
    answer = await client.call_tool("diagnose", {"from": "pod/shop/client", "to": "service/shop/web:80"})
    check(not answer.is_error, text_of(answer))
    content = answer.structured_content
    check(content["schema"] == "netdiag.answer/v1", content)
    check(content["causes"][0]["code"] == "service_selects_no_pods", content["causes"])
    check(content["causes"][0]["subjects"][0]["name"] == "web", content["causes"])
    check("service_selects_no_pods" in text_of(answer), text_of(answer))
    check(len(json.dumps(content)) <= SUMMARY_BYTES, "the summary has", len(json.dumps(content)), "bytes")

    evidence = await client.call_tool("get_evidence", {"handle": content["handle"]})
    check(not evidence.is_error, text_of(evidence))
    check(evidence.structured_content["total"] >= 1, evidence.structured_content)
    check(evidence.structured_content["steps"], evidence.structured_content)

    everything = await client.call_tool("scan", {})
    check(everything.structured_content["findings"][0]["cause"]["code"] == "service_selects_no_pods", everything)

    explained = await client.call_tool("explain_condition", {"code": "service_selects_no_pods"})
    check("selector" in explained.structured_content["conditions"][0]["means"], explained)

    for tool, arguments, next_step in [
        ("diagnose", {"to": "service/shop/wbe:80"}, "shop/web"),
        ("diagnose", {"to": "nonsense"}, "service/NAMESPACE/NAME:PORT"),
        ("diagnose", {}, "to"),
        ("diagnose", {"to": "service/shop/web:80", "colour": "red"}, "colour"),
        ("scan", {"namespace": "none"}, "scan without namespace"),
        ("get_evidence", {"handle": "answer-9999"}, "diagnose"),
        ("explain_condition", {"code": "service_selects_nopods"}, "service_selects_no_pods"),
    ]:
        result = await client.call_tool(tool, arguments)
        check(result.is_error, tool, arguments, "is no error")
        check(next_step in text_of(result), tool, arguments, "says no next step:", text_of(result))


async def main(transport, *target):
    for mode in ["auto", "legacy"]:
        server = target[0] if transport == "http" else StdioServerParameters(command=target[0], args=list(target[1:]))
        async with Client(server, mode=mode) as client:
            await story(client)
            print(f"{transport} {mode}: protocol {client.protocol_version}")


asyncio.run(main(*sys.argv[1:]))
