"""What the Hub refuses in a model card's header, as far as its documentation and huggingface_hub say."""

import re
from typing import Any

import yaml
from huggingface_hub import ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK

# huggingface.co/docs/hub/repositories-licenses.
_LICENSES = (
    "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 "
    "bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear "
    "c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 "
    "cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 "
    "cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl "
    "ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 "
    "isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib "
    "pddl lgpl-lr deepfloyd-if-license llama2 gemma unknown other"
)
# huggingface.co/tasks, those of text and images.
_PIPELINES = (
    "feature-extraction fill-mask image-classification image-feature-extraction image-text-to-text "
    "multiple-choice question-answering sentence-similarity summarization text-classification "
    "text-generation token-classification translation zero-shot-classification "
    "zero-shot-image-classification"
)
# huggingface.co/docs/hub/model-cards, "Specifying a base model".
_RELATIONS = "adapter merge quantized finetune"
_REPOSITORY = r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?"
# ISO 639-1 to 639-3, or a special value.
_LANGUAGE = r"[a-z]{2,3}|code|multilingual"
_METRIC = r"[a-z0-9_-]+"

# Pattern of each field's values, and whether it may hold a list of them.
_FIELDS = {
    "base_model": (_REPOSITORY, True),
    "datasets": (_REPOSITORY, True),
    "language": (_LANGUAGE, True),
    "library_name": (r"[a-z0-9_.-]+", False),
    "license_link": (r"https?://\S+|[\w.-]+", False),
    "license_name": (r"[\w.-]+", False),
    "metrics": (_METRIC, True),
    "tags": (r"[^/\\]+", True),
}
_CHOICES = {"base_model_relation": _RELATIONS, "license": _LICENSES, "pipeline_tag": _PIPELINES}


def card_errors(content: str) -> list[dict[str, str]]:
    """The Hub's complaints about a card; none where it is valid."""
    block = REGEX_YAML_BLOCK.search(content)
    try:
        header = yaml.safe_load(block[2]) if block else None
    except yaml.YAMLError as error:
        return [{"message": f"the header is not YAML: {error}"}]
    if not isinstance(header, dict):
        return [{"message": "the card has no header"}]
    found = [
        f'"{name}" with value {header[name]!r} is not one that is known'
        for name, known in _CHOICES.items()
        if name in header and header[name] not in known.split()
    ]
    for name, (pattern, several) in _FIELDS.items():
        if name in header:
            found += [
                f'"{name}" with value {value!r} is not valid'
                for value in _values(header[name], several)
                if not (isinstance(value, str) and re.fullmatch(pattern, value))
            ]
    if header.get("license") == "other" and "license_name" not in header:
        found.append('"license_name" is required with license other')
    if "base_model_relation" in header and "base_model" not in header:
        found.append('"base_model_relation" needs "base_model"')
    try:
        ModelCardData(**header)  # parses model-index into EvalResult, all required keys included
    except (ValueError, TypeError, AttributeError) as error:
        found.append(str(error))
    return [{"message": message} for message in found]


def _values(value: Any, several: bool) -> list[Any]:
    return value if several and isinstance(value, list) else [value]
