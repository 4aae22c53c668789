"""One file per architecture, found by the name that GGUF gives it (`general.architecture`, with _ for -). Each holds

read_spec(file) -> Spec    sizes from the metadata
rules(spec) -> [Rule]      its tensors, and by their shapes how they are cut
forward(p, spec, split, weights, caches)    the forward pass in the words of program/ops.py
HUGGING_FACE    what a Hugging Face folder calls all that (class HuggingFace of files/huggingface.py)

All but the last speak of metadata and tensors as GGUF does, whatever the source: read_spec asks for "llama.embedding_length" and
gets `hidden_size` of config.json, rules name "blk.0.attn_q.weight" and get "model.layers.0.self_attn.q_proj.weight". HUGGING_FACE
is the table from one to the other. What many folders share has a name in names.py (CONFIG, MIXTURE; ENDS, ATTENTION, QKV_BIAS, FFN,
EXPERTS, SHARED_EXPERT); entries are

    classes   whose folders these are, by "architectures" of config.json, and what transformers takes where config.json is silent:
              {"LlamaForCausalLM": {}, "MistralForCausalLM": {"sliding_window": 4096}}
    config    "hidden_size", or a function of the whole config.json for what GGUF says in another way (rope_type); None: not there.
    tensors   "model.layers.{layer}.mlp.down_proj.weight"; with {expert} the tensors of all experts become one, below each other
              plus_one(name)                      a norm that GGUF holds with 1 added
              Stored(name, values=function)       other changes of numbers, of vectors and tables: -exp(A_log)
              Stored(name, order=function)        rows in another order, or some of them (numbered_rows): in_proj_qkvz
    computed  vectors that GGUF has and folders only describe: function of the file, or None: "rope_freqs.weight" in llama
    only      keys of config.json that must have one value, because we compute nothing else: {"hidden_act": "silu"}
    ignored   patterns of tensors that are not needed: "*.rotary_emb.inv_freq"; further: those of layers that predict further tokens
    tied      whether the embedding is the output matrix where config.json does not say
    texts     text models of this kind in multimodal folders: {"gemma3_text": ("Gemma3ForCausalLM", sizes that it may leave out)}

Dimensions of 1 fall away (a convolution's (channels, 1, width) is (channels, width)). Quantised weights need no entry: of
NAME.weight files/layouts finds the layout's tensors (NAME.qweight, NAME.scales, ...). A tensor that nothing names is an error.

Importing one loads no Numba: plans read sizes and rules before its target is known.

Adding an architecture
----------------------
Where all words of forward exist, this file is all that numatp/ needs; the steps name every exception.

1. Copy the file of the nearest one to NAME.py: qwen2 (the plainest), qwen3 (norms of heads), gemma3 (windows, norms after a block),
   cohere2 (attention and feed-forward side by side), qwen3moe (experts), qwen3next (recurrent layers). models/spec.py reads what
   all files have in common, so read_spec says only what is different; a number that forward needs and Spec lacks goes into a Spec
   of the file's own (experts of a token are `experts_used`: plans read it). Where a file is silent, llama.cpp's defaults hold
   (the period in read_windows). What metadata can ask for and forward does not compute, read_spec refuses with file.fail; test
   that in tests/test_models.py. A new scaling of the rotation goes to models/rope.py.
2. rules lists every tensor that a layer has, in the order in which forward reads them: what one add_bias adds must lie side by
   side, and what one matmul multiplies should, to be one op. Shapes (Rule in weights/loader.py) are words of Sizes
   (weights/splits.py); a word that Split has too is cut between ranks there. A tensor in the file that no rule names, or the
   reverse, is an error when a model is loaded. By tensors' names go: how many exchanges a plan counts for a layer (SECOND_NORMS in
   advice/plan.py), and which tables and routers `numatp quantize` leaves as floats (KEPT in weights/convert.py).
3. forward is recorded once per rank and program, not run per token: it may not look at numbers that a token changes. Whatever is
   summed over ranks goes through one of the words that exchange (add_product and its kin), at best two per layer. Import
   program/ops.py for types only, see above.
4. If a word is missing, add it to program/ops.py and its kernel to the file of its kind in kernels/. The op says which buffers it
   reads and writes and how its threads divide them; ANYHOW is always right and costs a barrier. Test the kernel against numpy in
   tests/test_kernels.py, and add the model of step 6 to the list in tests/test_program.py, which tries the barriers.
5. Write HUGGING_FACE; say in `only` what numatp does not compute. `numatp quantize` writes the keys of `config` as metadata: one
   whose numbers are floats in GGUF must match FLOATING of files/huggingface.py. transformers has renamed keys (rope_parameters):
   read the older ones too, which released folders have, and test that in tests/test_folders.py.
6. Add a tiny model to MODELS in tests/data/make_golden.py: matrices of 32, 64, ... columns, a layer of each kind. What transformers
   or the converter want for this class alone goes into model_of, values_of (PLUS_ONE: norms around 0) and convert there. In an
   environment as its docstring says, `python tests/data/make_golden.py CONVERTER NAME` has transformers compute the logits and
   llama.cpp's converter write the file: golden/NAME.gguf, .npz and .json. Then write down for the tests, in tests/support/models,
   - each feature, with a way to take it out, in FEATURES of golden.py (a second model of an architecture: in VARIANTS of
     tests/test_golden.py as well);
   - names of the folder that LAYER of folders.py lacks, and numbers that are not those of the GGUF file, in a function of
     golden_folders.py that `write` there calls by NAME: a second time, so that a slip in the table is seen;
   - tensors that a file may lack, in `optional` of tests/test_models.py.
       pytest tests/test_golden.py tests/test_models.py tests/test_plan.py tests/test_quantize.py tests/test_program.py -k NAME
   This tests logits on 1, 2, 3 and 5 ranks, and from the folder, every feature, refusals of tensors, that plans count the bytes and
   exchanges that are there, and that `numatp quantize` makes of the folder what llama.cpp's converter made.
   Then `python tests/data/make_config_keys.py NAME` records what transformers computes when keys of config.json are changed, one
   at a time; tests/test_config_keys.py demands these numbers or a refusal, so that no key is forgotten in silence.
7. The tiny model has no vocabulary. If released ones cut words by a rule that text/words.py lacks, add it there and to RULES in
   tests/data/make_words_tokens.py; names of tokens that end a text to END_NAMES in text/tokenizer.py. SHAPES in models/shapes.py is
   for models that `numatp plan` should know without a file.
8. Name it in README.md's table.
       pytest tests/test_readme.py tests/test_plan.py -k "lists or numba"
"""

import importlib
import importlib.util
import os
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

from numatp.files.folder import Folder
from numatp.files.gguf import leave_out_further_layers, read_gguf
from numatp.files.gguf_header import fail, quote
from numatp.files.huggingface import HuggingFaceFile
from numatp.files.model_file import ModelFile

NOT_ARCHITECTURES = {"layers", "names", "rope", "shapes", "spec"}


def architectures() -> list[str]:
    """As GGUF has them; a module's name has _ for -."""
    return sorted(module.name.replace("_", "-") for module in iter_modules(__path__) if module.name not in NOT_ARCHITECTURES)


def open_model(path: str | os.PathLike[str]) -> tuple[ModelFile, ModuleType]:
    """(metadata and tensors, the module of its architecture) of a GGUF file or a Hugging Face folder.

    UserError for what is damaged, missing or of an unknown architecture.
    """
    if os.path.isdir(path):
        return _open_folder(Folder(Path(path)))
    file = read_gguf(path)
    model = find(file)
    leave_out_further_layers(file)
    return file, model


def find(file: ModelFile) -> ModuleType:
    """The module of the architecture that the file names."""
    name = file.text("general.architecture")
    if name not in architectures():
        file.fail(f"architecture {quote(name)} is not supported; supported: {', '.join(architectures())}")
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")


def _open_folder(folder: Folder) -> tuple[ModelFile, ModuleType]:
    supported: list[str] = []
    for name in architectures():
        module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
        table = getattr(module, "HUGGING_FACE", None)
        if table and folder.architecture in table.classes:
            return HuggingFaceFile(folder, table, folder.architecture, name), module
        if table and folder.text_type in table.texts and folder.architecture.endswith("ForConditionalGeneration"):
            architecture, sizes = table.texts[folder.text_type]
            folder.keep_text()
            folder.config = {**sizes, **folder.config}
            return HuggingFaceFile(folder, table, architecture, name), module
        supported += table.classes if table else ()
    known = ", ".join(sorted(supported))
    fail(folder.config_path, f"architecture {quote(folder.architecture)} is not supported; supported: {known}")
