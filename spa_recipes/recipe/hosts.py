"""Which secret may go to which server: a key goes to its own service, and to others only if the user says so."""

import ipaddress
import re
from urllib.parse import urlsplit

OWN_HOSTS = {
    "ANTHROPIC_API_KEY": ("api.anthropic.com",),
    "COHERE_API_KEY": ("api.cohere.com", "api.cohere.ai"),
    "DEEPSEEK_API_KEY": ("api.deepseek.com",),
    "FIREWORKS_API_KEY": ("api.fireworks.ai",),
    "GEMINI_API_KEY": ("generativelanguage.googleapis.com",),
    "GOOGLE_API_KEY": ("generativelanguage.googleapis.com",),
    "GROQ_API_KEY": ("api.groq.com",),
    "MISTRAL_API_KEY": ("api.mistral.ai",),
    "OPENAI_API_KEY": ("api.openai.com",),
    "OPENROUTER_API_KEY": ("openrouter.ai",),
    "TOGETHER_API_KEY": ("api.together.xyz", "api.together.ai"),
    "XAI_API_KEY": ("api.x.ai",),
}
"""The servers of the service that a variable's key is for."""

_NEVER = re.compile(r"^(HF_|HUGGING_?FACE|AWS_|WANDB_)", re.IGNORECASE)


def is_never_sent(variable: str) -> bool:
    """Whether a variable holds a secret that no endpoint has a use for."""
    return _NEVER.match(variable) is not None


def is_own_host(variable: str, base_url: str) -> bool:
    """Whether an address is one of the service that a variable's key is for."""
    return host_of(base_url) in OWN_HOSTS.get(variable.upper(), ())


def is_encrypted(base_url: str) -> bool:
    """Whether what is sent to an address can be read by nobody on the way: it is https, or this machine itself."""
    return urlsplit(base_url).scheme == "https" or _is_loopback(host_of(base_url))


def host_of(base_url: str) -> str:
    """The host in an address; empty where it cannot be read."""
    try:
        return (urlsplit(base_url).hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
