"""Orders to whoever reads the inputs: they are data, flagged, and no source of facts.

`order_in` recognises a sentence that addresses the reader. What goes on with it, on its line or right below, is part of
the order when it commands ("…; use 64 GPUs"). Anything else on such a line is believed less than what stands elsewhere.
"""

from __future__ import annotations

import re

from agent.reading.lexicon import INJECTION, search
from tools.units import fold_width

_AI = (
    r"(?:ai\b|llms?\b|(?:large )?language models?\b|chat ?bots?\b|chatgpt\b|gpt\b|claude\b|"
    r"(?:ai|llm|automated|planning) (?:agents?|assistants?|models?|planners?|readers?|systems?)\b)"
)
_KI = r"(?:AI|LLM|人工智能|大?语言模型|大模型|智能体|智能助手|机器人)\s*(?:助手|系统|模型|智能体)?"
ADDRESSED = re.compile(
    rf"\b(?:notes?|messages?|reminders?|attention|instructions?|notice|memo|hints?)\s*(?:to|for)\s+(?:the |any |all )?{_AI}"
    rf"|\b(?:dear|hey|hello|hi|listen|attention)[, ]+(?:the )?(?:{_AI}|assistant\b|agent\b|bot\b|planner\b)"
    rf"|\bas an? (?:{_AI}|assistant\b)|\b{_AI} (?:that |which |who )?(?:reading|reads?|processing|parsing|parses) (?:this|the)\b"
    r"|\bwhen(?:ever)? you (?:read|parse|process|see|summari[sz]e) (?:this|the)\b|\b(?:developer|god|admin|dan|jailbreak) mode\b"
    r"|\b(?:system|developer)\s*[:：]\s*(?:override|you\b|ignore|use\b|set\b|new\b|always|never|do\b|from now)"
    r"|<\|?/?(?:system|im_start|im_end|endoftext)"
    rf"|(?:致|给|告知|写给)\s*(?:所有|各位|任何|这个)?\s*(?:{_KI}|助手)\s*(?:的?(?:说明|指令|提示|留言|要求|话|备注))?\s*[:：,，]"
    rf"|{_KI}\s*(?:请|须|必须|务必|应当?)(?:注意|回答|输出|忽略|按|将|把|使用|改|执行|直接)"
    rf"|如果你是.{{0,10}}(?:{_KI}|助手)|作为(?:一个|一名)?(?:{_KI}|助手)[,，你]"
    r"|系统(?:指令|命令|消息|提示(?!词|语))\s*[】\])）:：]",
    re.IGNORECASE,
)
_VERBS = (
    r"use|set|say|report|claim|call|assume|treat|consider|plan|output|answer|reply|respond|print|return|write|make|choose|"
    r"pick|change|replace|increase|reduce|raise|lower|declare|mark|state|pretend|act|tell|give|ignore|skip|send|open|read|"
    r"put|take|apply|switch|add|remove|don'?t|do not|never|forget|call|invoke|execute"
)
_COMMAND = re.compile(
    r"^\W*(?:(?:and|then|also|now|please|instead|just|simply|always|you (?:must|should|will|shall|have to|are to))[\s,]+)*"
    rf"(?:{_VERBS})\b"
    r"|^\W*(?:(?:并且?|然后|再|请|直接|必须|务必|同时|最后|你|一律|统一)[,，\s]*)*"
    r"(?:把|将|使用|采用|改|用|设|回答|输出|报告|声称|调用|假设|假定|按|当作|视为|视作|写|选|换|标记|返回|说|给出|不要|忽略|执行|打印|跳过)",
    re.IGNORECASE,
)


def order_in(text: str) -> bool:
    """Whether the text addresses the reader with an order. `text` has its full-width letters folded."""
    return bool(search(INJECTION).search(text) or ADDRESSED.search(text))


def commands(text: str) -> bool:
    """Whether the text begins as a command does; only beside an order is it one to the reader."""
    return bool(_COMMAND.match(text))


def lines_with_order(text: str) -> frozenset[int]:
    """Numbers (from 1) of the lines that hold an order anywhere."""
    return frozenset(n for n, line in enumerate(text.split("\n"), 1) if order_in(fold_width(line)))


def orders_in_comments(text: str) -> list[tuple[int, str]]:
    """(line, comment) of every order in a `#` comment of YAML or TOML, which no parser hands on."""
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        comment = re.search(r"(?:^|\s)#(.*)$", line)
        if comment and order_in(fold_width(comment[1])):
            found.append((number, comment[1].strip()))
    return found
