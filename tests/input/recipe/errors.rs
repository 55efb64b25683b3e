//! Every mistake in a recipe, with the whole message and hints that a user gets.

use merganser::error::Kind;
use merganser::recipe::parse_bytes;

/// Recipe text, message, hints.
struct Case(&'static str, &'static str, &'static [&'static str]);

const CASES: &[Case] = &[
    Case("", "recipe.yaml: the recipe is empty", &["a recipe needs at least `merge_method` and `models`"]),
    Case("# nothing\n", "recipe.yaml: the recipe is empty", &["a recipe needs at least `merge_method` and `models`"]),
    Case("- a\n", "recipe.yaml:1: a recipe is a mapping, found a list", &[]),
    Case("just words\n", "recipe.yaml:1: a recipe is a mapping, found `just words`", &[]),
    Case("models: [{model: a}]\n", "recipe.yaml: `merge_method` is missing", &["methods: …"]),
    Case(
        "merge_method: linear\n",
        "recipe.yaml: `models` is missing",
        &["list the models to merge: `models: [{model: path}, …]`"],
    ),
    Case(
        "merge_method: linear\nmodels: null\n",
        "recipe.yaml: `models` is missing",
        &["list the models to merge: `models: [{model: path}, …]`"],
    ),
    Case("merge_method: linear\nmodels: []\n", "recipe.yaml:2: method `linear` takes 1 to 64 models, found 0", &[]),
    Case("merge_method: linear\nmodels: {model: a}\n", "recipe.yaml:2: `models` must be a list, found a mapping", &[]),
    Case(
        "merge_method: linear\nmodels: [a]\n",
        "recipe.yaml:2: an entry of `models` must be a mapping, found `a`",
        &["write `- model: …`"],
    ),
    Case(
        "merge_method: linear\nmodels: [{modle: a}]\n",
        "recipe.yaml:2: unknown key `modle` in an entry of `models`",
        &["did you mean `model`?", "known keys: `model` and `parameters`"],
    ),
    Case(
        "merge_method: linear\nmodels: [{parameters: {weight: 1}}]\n",
        "recipe.yaml:2: an entry of `models` has no `model`",
        &[],
    ),
    Case(
        "merge_method: linear\nmodels: [{model: {model: a, lore: b}}]\n",
        "recipe.yaml:2: unknown key `lore` in `model`",
        &["did you mean `lora`?", "known keys: `model`, `lora`, `path`, `revision` and `override_architecture`"],
    ),
    Case(
        "merge_method: linear\nmodels: [{model: [a]}]\n",
        "recipe.yaml:2: `model` must be a path, found a list",
        &["write the path of a checkpoint: a folder, or one .safetensors file"],
    ),
    Case(
        "merge_method: linear\nmodels: [{model: ''}]\n",
        "recipe.yaml:2: `model` is empty",
        &["write the path of a checkpoint: a folder, or one .safetensors file"],
    ),
    Case(
        "merge_method: linear\nmodels: [{model: ~}]\n",
        "recipe.yaml:2: `model` is empty",
        &["write the path of a checkpoint: a folder, or one .safetensors file"],
    ),
    Case(
        "merge_method: linear\nmodels: [{model: \"a\\0b\"}]\n",
        "recipe.yaml:2: `model` holds a NUL character: `a\\0b`",
        &[],
    ),
    // The top level.
    Case(
        "merge_methode: linear\n",
        "recipe.yaml:1: unknown key `merge_methode`",
        &[
            "did you mean `merge_method`?",
            "known keys: `merge_method`, `base_model`, `models`, `slices`, `modules`, `parameters`, `task_vector_stages`, `copy`, `dtype`, `out_dtype`, `output`, `factors`, `lora_rank`, `adapter_space`, `tokenizer_source`, `tokenizer` and `chat_template`",
        ],
    ),
    Case(
        "merge_method: linear\nstages: []\n",
        "recipe.yaml:2: unknown key `stages`",
        &[
            "did you mean `task_vector_stages`?",
            "known keys: `merge_method`, `base_model`, `models`, `slices`, `modules`, `parameters`, `task_vector_stages`, `copy`, `dtype`, `out_dtype`, `output`, `factors`, `lora_rank`, `adapter_space`, `tokenizer_source`, `tokenizer` and `chat_template`",
        ],
    ),
    Case(
        "merge_method: linear\n\"\\e[2J\": 1\n",
        "recipe.yaml:2: unknown key `\\u{1b}[2J`",
        &[
            "known keys: `merge_method`, `base_model`, `models`, `slices`, `modules`, `parameters`, `task_vector_stages`, `copy`, `dtype`, `out_dtype`, `output`, `factors`, `lora_rank`, `adapter_space`, `tokenizer_source`, `tokenizer` and `chat_template`",
        ],
    ),
    // Several mistakes at once.
    Case(
        "merge_method: linear\nmodels:\n- model: a\n  parameters: {weight: x}\n- modle: b\n- model: ''\nfrobnicate: 1\ndtype: bf17\n",
        "recipe.yaml:4: parameter `weight` must be a number, found `x`\n\
         recipe.yaml:5: unknown key `modle` in an entry of `models`\nrecipe.yaml:6: `model` is empty\n\
         recipe.yaml:7: unknown key `frobnicate`\nrecipe.yaml:8: unknown dtype `bf17` in `dtype`",
        &[
            "line 5: did you mean `model`?",
            "line 5: known keys: `model` and `parameters`",
            "line 6: write the path of a checkpoint: a folder, or one .safetensors file",
            "line 7: known keys: `merge_method`, `base_model`, `models`, `slices`, `modules`, `parameters`, `task_vector_stages`, `copy`, `dtype`, `out_dtype`, `output`, `factors`, `lora_rank`, `adapter_space`, `tokenizer_source`, `tokenizer` and `chat_template`",
            "line 8: known dtypes: `float64`, `float32`, `bfloat16`, `float16`, `float8_e4m3fn` and `float8_e5m2`",
        ],
    ),
    Case(
        "merge_method: frobnicate\nmodels: [{model: a}]\nfrob: 1\n",
        "recipe.yaml:1: unknown method `frobnicate`\nrecipe.yaml:3: unknown key `frob`",
        &[
            "line 1: methods: …",
            "line 3: known keys: `merge_method`, `base_model`, `models`, `slices`, `modules`, `parameters`, `task_vector_stages`, `copy`, `dtype`, `out_dtype`, `output`, `factors`, `lora_rank`, `adapter_space`, `tokenizer_source`, `tokenizer` and `chat_template`",
        ],
    ),
    // Slices.
    Case("merge_method: linear\nslices: []\n", "recipe.yaml:2: `slices` is empty", &[]),
    Case(
        "merge_method: linear\nmodules: {}\n",
        "recipe.yaml:2: `modules` is empty",
        &["name a module: `modules: {default: {slices: …}}`"],
    ),
    Case(
        "merge_method: linear\nmodels: [{model: a}]\nslices: [{sources: [{model: a, layer_range: [0, 1]}]}]\n",
        "recipe.yaml:3: a recipe has `models` or `slices`, not both",
        &[],
    ),
    Case(
        "merge_method: linear\nslices:\n- sources:\n  - {model: a, layer_range: [0, 4]}\n  - {model: b, layer_range: [4, 6]}\n",
        "recipe.yaml:5: the sources of a slice must have as many layers each: `b` has 2, `a` of line 4 has 4",
        &[],
    ),
    Case(
        "merge_method: passthrough\nslices:\n- sources:\n  - {model: a, layer_range: [4, 4]}\n",
        "recipe.yaml:4: `layer_range: [4, 4]` holds no layer",
        &[],
    ),
    Case(
        "merge_method: passthrough\nslices:\n- sources:\n  - {model: a, layer_range: [0, -4]}\n",
        "recipe.yaml:4: `layer_range` must be two whole numbers, found `-4`",
        &["write `layer_range: [FIRST, END]`: layers from FIRST on, END excluded"],
    ),
    Case(
        "merge_method: linear\nslices:\n- sources:\n  - {model: a}\n",
        "recipe.yaml:4: `a` has no `layer_range`",
        &["write `layer_range: [FIRST, END]`: layers from FIRST on, END excluded"],
    ),
    Case(
        "merge_method: linear\nslices:\n- sources:\n  - {model: a, layer_range: [0, 4]}\n  - {model: ./a, layer_range: [4, 8]}\n",
        "recipe.yaml:5: `./a` is the model of line 4 again",
        &["list it once; to let it count twice, double its weight"],
    ),
    Case(
        "merge_method: slerp\nbase_model: c\nparameters: {t: 0.5}\nslices:\n- sources:\n  - {model: a, layer_range: [0, 4]}\n  - {model: b, layer_range: [0, 4]}\n",
        "recipe.yaml:5: method `slerp` takes exactly 1 model besides the base, found 2",
        &[],
    ),
    Case(
        "merge_method: linear\nslices: [{sources: []}]\n",
        "recipe.yaml:2: `sources` is empty: a slice is made of one source at least",
        &[],
    ),
    Case(
        "merge_method: linear\nslices: [{parameters: {}}]\n",
        "recipe.yaml:2: an entry of `slices` has no `sources`",
        &[],
    ),
    Case(
        "merge_method: linear\nslices: [{source: []}]\n",
        "recipe.yaml:2: unknown key `source` in an entry of `slices`",
        &["did you mean `sources`?", "known keys: `sources`, `base_model` and `parameters`"],
    ),
    // Methods.
    Case(
        "merge_method: tie\nmodels: [{model: a}]\n",
        "recipe.yaml:1: unknown method `tie`",
        &["did you mean `ties`?", "methods: …"],
    ),
    Case(
        "merge_method: frobnicate\nmodels: [{model: a}]\n",
        "recipe.yaml:1: unknown method `frobnicate`",
        &["methods: …"],
    ),
    Case(
        "merge_method: della_linear\nmodels: [{model: a}]\n",
        "recipe.yaml:1: unknown method `della_linear`: mergekit has it, merganser does not yet",
        &["methods: …"],
    ),
    Case(
        "merge_method: lwptv\nmodels: [{model: a}]\n",
        "recipe.yaml:1: `lwptv` is a task-vector stage, not a merge method",
        &["put it in front of a method: `task_vector_stages: [{stage: lwptv}]`", "methods: …"],
    ),
    Case(
        "merge_method: [linear]\nmodels: [{model: a}]\n",
        "recipe.yaml:1: `merge_method` must be a word, found a list",
        &[],
    ),
    Case(
        "models: [{model: a}]\nmerge_method: ties\n",
        "recipe.yaml:2: method `ties` needs `base_model`: the model that the others were trained from",
        &[],
    ),
    Case(
        "merge_method: slerp\nbase_model: a\nmodels:\n- model: a\n- model: b\n- model: c\nparameters: {t: 0.5}\n",
        "recipe.yaml:3: method `slerp` takes exactly 1 model besides the base, found 2",
        &[],
    ),
    Case(
        "merge_method: ties\nbase_model: a\nmodels: [{model: b}, {model: a}, {model: a/}]\n",
        "recipe.yaml:3: `a/` is the model of line 3 again",
        &["list it once; to let it count twice, double its weight"],
    ),
    Case(
        "merge_method: passthrough\nbase_model: a\nmodels: [{model: a}, {model: b}]\n",
        "recipe.yaml:3: method `passthrough` takes exactly 1 model, found 2",
        &[],
    ),
    Case(
        "merge_method: slerp\nbase_model: a\nmodels: [{model: b}]\n",
        "recipe.yaml:1: method `slerp` needs the parameter `t`: position between the base (0) and the other model (1)",
        &["write `parameters: {t: …}`"],
    ),
    // What is written.
    Case(
        "merge_method: cart\nmodels: [{model: a}]\noutput: factor\n",
        "recipe.yaml:3: `output` must be one of `merged`, `factors` or `lora`, found `factor`",
        &["did you mean `factors`?"],
    ),
    Case(
        "merge_method: cart\nmodels: [{model: a}]\noutput: [lora]\n",
        "recipe.yaml:3: `output` must be a word, found a list",
        &[],
    ),
    Case(
        "merge_method: linear\nmodels: [{model: a}]\noutput: lora\n",
        "recipe.yaml:3: `output: lora` stores low-rank parts, and method `linear` makes none",
        &["methods that make them: …"],
    ),
    Case(
        "merge_method: cart\nmodels: [{model: a}]\nparameters:\n  energy: 0.9\noutput: factors\n",
        "recipe.yaml:4: `energy` leaves the rank open until the data is read, and `output: factors` needs it before",
        &["give `rank_ratio` or `rank` instead"],
    ),
    Case(
        "merge_method: cart\nmodels: [{model: a}]\nfactors: {dtype: bf16}\n",
        "recipe.yaml:3: `factors` says how factors are stored, and this recipe stores none",
        &["add `output: factors` or `output: lora`, or leave it out"],
    ),
    Case(
        "merge_method: cart\nmodels: [{model: a}]\noutput: factors\nfactors: {dtyp: bf16}\n",
        "recipe.yaml:4: unknown key `dtyp` in `factors`",
        &["did you mean `dtype`?", "known keys: `dtype`, `others` and `base_model_name_or_path`"],
    ),
    Case(
        "merge_method: cart\nmodels: [{model: a}]\noutput: factors\nfactors: {dtype: float64}\n",
        "recipe.yaml:4: factors cannot be stored as float64",
        &["write `float16`, `bfloat16` or `float32`"],
    ),
    Case(
        "merge_method: cart\nmodels: [{model: a}]\noutput: factors\nfactors: {base_model_name_or_path: a}\n",
        "recipe.yaml:4: `base_model_name_or_path` is for adapters, and `output: factors` writes none",
        &["leave it out, or write `output: lora`"],
    ),
    Case(
        "merge_method: cart\nmodels: [{model: a}]\noutput: lora\nfactors: bf16\n",
        "recipe.yaml:4: `factors` must be a mapping, found `bf16`",
        &[],
    ),
    Case(
        "merge_method: cart\nmodels: [{model: a}]\noutput: factors\nfactors: {others: tasks}\n",
        "recipe.yaml:4: `others` must be one of `centre` or `task`, found `tasks`",
        &["did you mean `task`?"],
    ),
    Case(
        "merge_method: cart\nmodels: [{model: a}]\noutput: lora\nfactors: {others: task}\n",
        "recipe.yaml:4: `others: task` cannot be: an adapter changes matrices alone",
        &["leave it out"],
    ),
    Case(
        "merge_method: cart\nbase_model: b\nmodels: [{model: a}]\noutput: factors\nfactors: {others: task}\n\
         task_vector_stages: [{stage: lwptv}]\n",
        "recipe.yaml:5: `others: task` cannot be: a task-vector stage changes the tasks' tensors, and these would be stored unchanged",
        &["leave it out"],
    ),
    // Parameters: keys.
    Case(
        "merge_method: magmax\nbase_model: a\nmodels: [{model: b, parameters: {colour: 1}}]\n",
        "recipe.yaml:3: unknown key `colour` in a model's `parameters`",
        &["parameters of `magmax`: …"],
    ),
    Case(
        "merge_method: linear\nmodels: [{model: b}]\nparameters: {keep: 0.5}\n",
        "recipe.yaml:3: method `linear` has no parameter `keep`",
        &["stages that have it: `lwptv`; it goes into the stage's own `parameters`", "parameters of `linear`: …"],
    ),
    Case(
        "merge_method: linear\nmodels: [{model: b}]\nparameters: [1]\n",
        "recipe.yaml:3: `parameters` must be a mapping, found a list",
        &[],
    ),
    Case(
        "merge_method: linear\nmodels: [{model: b}]\nparameters:\n  weight: 1\n  normalize: true\n  weight: 2\n",
        "recipe.yaml:6: duplicate key `weight` (first on line 4)",
        &["keep one of the two"],
    ),
    Case(
        "merge_method: cart\nmodels: [{model: b}]\nparameters:\n  rank: 8\n  lambda: 1\n  energy: 0.9\n",
        "recipe.yaml:6: `rank` and `energy` exclude each other",
        &["give at most one of `rank_ratio`, `energy` or `rank`"],
    ),
    // Parameters: values.
    Case(
        "merge_method: linear\nmodels: [{model: b}]\nparameters: {weight: heavy}\n",
        "recipe.yaml:3: parameter `weight` must be a number, found `heavy`",
        &[],
    ),
    Case(
        "merge_method: linear\nmodels: [{model: b}]\nparameters: {weight: .nan}\n",
        "recipe.yaml:3: parameter `weight` must be a finite number, found `.nan`",
        &[],
    ),
    Case(
        "merge_method: linear\nmodels: [{model: b}]\nparameters: {weight: -.inf}\n",
        "recipe.yaml:3: parameter `weight` must be a finite number, found `-.inf`",
        &[],
    ),
    Case(
        "merge_method: linear\nmodels: [{model: b}]\nparameters: {weight: 1e999}\n",
        "recipe.yaml:3: parameter `weight` must be a finite number, found `1e999`",
        &[],
    ),
    Case(
        "merge_method: linear\nmodels: [{model: b}]\nparameters: {weight: 010}\n",
        "recipe.yaml:3: parameter `weight` must be a number, found `010`",
        &["YAML readers differ on a leading zero, some count in eights: write the number without it"],
    ),
    Case(
        "merge_method: linear\nmodels: [{model: b}]\nparameters: {weight: 2e6}\n",
        "recipe.yaml:3: parameter `weight` is `2e6`, outside [-1000000, 1000000]",
        &[],
    ),
    Case(
        "merge_method: ties\nbase_model: a\nmodels: [{model: b, parameters: {density: 1.5}}]\n",
        "recipe.yaml:3: parameter `density` is `1.5`, outside [0, 1]",
        &[],
    ),
    Case(
        "merge_method: cart\nmodels: [{model: b}]\nparameters: {energy: 0}\n",
        "recipe.yaml:3: parameter `energy` is `0`, outside (0, 1]",
        &[],
    ),
    Case(
        "merge_method: cart\nmodels: [{model: b}]\nparameters: {rank: 0}\n",
        "recipe.yaml:3: parameter `rank` is `0`, outside [1, 1073741824]",
        &[],
    ),
    Case(
        "merge_method: cart\nmodels: [{model: b}]\nparameters: {rank: 2.5}\n",
        "recipe.yaml:3: parameter `rank` must be a whole number, found `2.5`",
        &[],
    ),
    Case(
        "merge_method: cart\nmodels: [{model: b}]\nparameters: {rank: [4, 8]}\n",
        "recipe.yaml:3: parameter `rank` is a whole number, and these have fractions between them",
        &["give one value, or choose by tensor name: a list of `{filter: …, value: …}`"],
    ),
    Case(
        "merge_method: linear\nmodels: [{model: b}]\nparameters: {normalize: 2}\n",
        "recipe.yaml:3: parameter `normalize` must be true or false, found `2`",
        &[],
    ),
    Case(
        "merge_method: linear\nmodels: [{model: b}]\nparameters: {weight: [1, ~]}\n",
        "recipe.yaml:3: parameter `weight` must be a number, found nothing (null)",
        &[],
    ),
    Case(
        "merge_method: linear\nmodels: [{model: b}]\nparameters: {weight: [[1]]}\n",
        "recipe.yaml:3: parameter `weight` must be a number, found a list",
        &[],
    ),
    Case(
        "merge_method: linear\nmodels: [{model: b}]\nparameters:\n  weight:\n  - filter: mlp\n    value: 1\n  - 2\n",
        "recipe.yaml:7: parameter `weight` mixes `{filter, value}` with `2`",
        &[
            "a list holds either values, from the first layer to the last, or mappings; `- value: …` without a filter matches every tensor",
        ],
    ),
    Case(
        "merge_method: linear\nmodels: [{model: b}]\nparameters: {weight: [{filter: mlp}]}\n",
        "recipe.yaml:3: parameter `weight`: this mapping has no `value`",
        &["write `{filter: part-of-a-tensor-name, value: …}`"],
    ),
    Case(
        "merge_method: linear\nmodels: [{model: b}]\nparameters: {weight: {filtre: mlp, value: 1}}\n",
        "recipe.yaml:3: unknown key `filtre` in the value of `weight`",
        &["did you mean `filter`?", "known keys: `filter` and `value`"],
    ),
    Case(
        "merge_method: linear\nmodels: [{model: b}]\nparameters: {weight: {filter: [mlp], value: 1}}\n",
        "recipe.yaml:3: `filter` must be a word, found a list",
        &[],
    ),
    Case(
        "merge_method: linear\nmodels: [{model: b}]\nparameters: {weight: [{filter: mlp, value: x}]}\n",
        "recipe.yaml:3: parameter `weight` must be a number, found `x`",
        &[],
    ),
    // Stages.
    Case(
        "merge_method: slerp\nbase_model: a\nmodels: [{model: b}]\nparameters: {t: 0.5}\ntask_vector_stages: [{stage: lwptv}]\n",
        "recipe.yaml:5: method `slerp` does not work on task vectors: no stage can stand before it",
        &["methods that take stages: …"],
    ),
    Case(
        "merge_method: linear\nmodels: [{model: b}]\ntask_vector_stages: [{stage: lwptv}]\n",
        "recipe.yaml:3: `task_vector_stages` needs `base_model`: a task vector is a model minus the base",
        &[],
    ),
    Case(
        "merge_method: linear\nbase_model: a\nmodels: [{model: b}]\ntask_vector_stages: [{stage: ties}]\n",
        "recipe.yaml:4: `ties` is a merge method, not a task-vector stage",
        &["name it as `merge_method: ties`", "stages: …"],
    ),
    Case(
        "merge_method: linear\nbase_model: a\nmodels: [{model: b}]\ntask_vector_stages: [{stage: lwtpv}]\n",
        "recipe.yaml:4: unknown stage `lwtpv`",
        &["did you mean `lwptv`?", "stages: …"],
    ),
    Case(
        "merge_method: linear\nbase_model: a\nmodels: [{model: b}]\ntask_vector_stages: [lwptv]\n",
        "recipe.yaml:4: an entry of `task_vector_stages` must be a mapping, found `lwptv`",
        &["write `- stage: …`"],
    ),
    Case(
        "merge_method: linear\nbase_model: a\nmodels: [{model: b}]\ntask_vector_stages: lwptv\n",
        "recipe.yaml:4: `task_vector_stages` must be a list, found `lwptv`",
        &[],
    ),
    Case(
        "merge_method: linear\nbase_model: a\nmodels: [{model: b}]\ntask_vector_stages: [{stage: lwptv, parameters: {lambda: 1}}]\n",
        "recipe.yaml:4: stage `lwptv` has no parameter `lambda`",
        &["methods that have it: …", "parameters of `lwptv`: …"],
    ),
    Case(
        "merge_method: linear\nbase_model: a\nmodels: [{model: b}]\ntask_vector_stages: [{stage: lwptv, parameters: {kep: 1}}]\n",
        "recipe.yaml:4: unknown key `kep` in `parameters` of the stage `lwptv`",
        &["did you mean `keep`?", "parameters of `lwptv`: …"],
    ),
    Case(
        "merge_method: linear\nbase_model: a\nmodels: [{model: b}]\ntask_vector_stages: [{stage: lwptv, parameters: {score: deviant}}]\n",
        "recipe.yaml:4: parameter `score` must be one of `magnitude`, `relative`, `deviation`, `agreement` or `tall`, found `deviant`",
        &[],
    ),
    // Patterns and dtypes.
    Case(
        "merge_method: linear\nmodels: [{model: b}]\ncopy:\n- lm_head.*\n- '(a'\n",
        "recipe.yaml:5: pattern `(a` of `copy` does not compile: unclosed group",
        &["a pattern matches a tensor's whole name; `.` is any character and `.*` any text"],
    ),
    Case(
        "merge_method: linear\nmodels: [{model: b}]\ncopy: {a: b}\n",
        "recipe.yaml:3: `copy` takes regular expressions over tensor names, found a mapping",
        &[],
    ),
    Case(
        "merge_method: linear\nmodels: [{model: b}]\ncopy: ['']\n",
        "recipe.yaml:3: a pattern of `copy` is empty",
        &[],
    ),
    Case(
        "merge_method: cart\nmodels: [{model: b}]\nparameters: {eligible: ['*.mlp']}\n",
        "recipe.yaml:3: pattern `*.mlp` of `eligible` does not compile: repetition operator missing expression",
        &["a pattern matches anywhere in a tensor's name; `.` is any character and `.*` any text"],
    ),
    Case(
        "merge_method: cart\nmodels: [{model: b}]\nparameters: {eligible: [{filter: a, value: b}]}\n",
        "recipe.yaml:3: `eligible` takes regular expressions over tensor names, found a mapping",
        &[],
    ),
    Case(
        "merge_method: linear\nmodels: [{model: b}]\nout_dtype: bflaot16\n",
        "recipe.yaml:3: unknown dtype `bflaot16` in `out_dtype`",
        &[
            "did you mean `bfloat16`?",
            "known dtypes: `float64`, `float32`, `bfloat16`, `float16`, `float8_e4m3fn` and `float8_e5m2`",
        ],
    ),
    Case(
        "merge_method: linear\nmodels: [{model: b}]\ndtype: int64\n",
        "recipe.yaml:3: unknown dtype `int64` in `dtype`",
        &["known dtypes: `float64`, `float32`, `bfloat16`, `float16`, `float8_e4m3fn` and `float8_e5m2`"],
    ),
    Case(
        "merge_method: linear\nmodels: [{model: b}]\ndtype: [float32]\n",
        "recipe.yaml:3: `dtype` must be a word, found a list",
        &[],
    ),
    // YAML.
    Case("a: [1\nb: 2\n", "recipe.yaml:2: not valid YAML: illegal placement of ':' indicator", &[]),
    Case(
        "base_model: a\ngate_mode: hidden\nexperts: [{source_model: b}]\n",
        "recipe.yaml:3: `experts` is a configuration of mergekit-moe with `gate_mode: hidden`: it takes hidden states of a model that runs, and merganser runs none",
        &[],
    ),
    // Several documents.
    Case(
        "merge_method: linear\nmodels: [{model: a}]\n---\nmerge_method: linear\nmodels: [{model: b}]\n",
        "recipe.yaml:4: a second document without a `name` starts here: one of several is the output, and the others have names",
        &[],
    ),
    Case(
        "name: x\nmerge_method: linear\nmodels: [{model: a}]\n---\nname: x\nmerge_method: linear\nmodels: [{model: b}]\n",
        "recipe.yaml:5: every document has a `name`, so that none of them is the output\nrecipe.yaml:5: two documents have the name `x`",
        &["line 5: take the `name` of the last one away"],
    ),
    Case(
        "name: x\nmerge_method: linear\nmodels: [{model: y}]\n---\nname: y\nmerge_method: linear\nmodels: [{model: x}]\n---\nmerge_method: linear\nmodels: [{model: x}]\n",
        "recipe.yaml:1: the documents need each other in a circle, `x` among them",
        &[],
    ),
    Case(
        "name: ../x\nmerge_method: linear\nmodels: [{model: a}]\n---\nmerge_method: linear\nmodels: [{model: b}]\n",
        "recipe.yaml:1: a document's `name` must do for a folder, found `../x`",
        &["write letters, digits, `-`, `_` and `.`"],
    ),
    Case(
        "a: !python/object:os.system x\n",
        "recipe.yaml:1: the tag `!python/object:os.system` has no meaning here",
        &["write the value without a tag"],
    ),
    Case("a: !!int x\n", "recipe.yaml:1: `x` is not what its tag `!!int` says", &[]),
    Case(
        "a: !!binary aGk=\n",
        "recipe.yaml:1: the tag `!!binary` has no meaning here",
        &["write the value without a tag"],
    ),
    Case("a: &x [*x]\n", "recipe.yaml:1: an alias stands inside the value it names", &[]),
    Case("[a, b]: 1\n", "recipe.yaml:1: a key must be a word, found a list", &[]),
    Case("<<: 1\n", "recipe.yaml:1: `<<` takes a mapping or a list of mappings", &[]),
];

/// Hints that list the registry's names: the table holds their first words, so that a new method changes none of it.
const LISTS: [&str; 6] = [
    "methods: ",
    "parameters of `",
    "methods that have it: ",
    "methods that take stages: ",
    "methods that make them: ",
    "stages: ",
];

fn shortened(hint: &str) -> String {
    let (line, hint) = match hint.strip_prefix("line ").and_then(|rest| rest.split_once(": ")) {
        Some((line, hint)) => (format!("line {line}: "), hint),
        None => (String::new(), hint),
    };
    match hint.split_once(": ") {
        Some((label, _)) if LISTS.iter().any(|list| hint.starts_with(list)) => format!("{line}{label}: …"),
        _ => format!("{line}{hint}"),
    }
}

#[test]
fn every_mistake_is_explained_in_full() {
    let mut wrong = Vec::new();
    for Case(text, message, hints) in CASES {
        let Err(error) = parse_bytes(text.as_bytes()) else {
            wrong.push(format!("{text}is taken"));
            continue;
        };
        let found: Vec<_> = error.hints().iter().map(|h| shortened(h)).collect();
        if error.to_string() != *message || found != *hints || error.kind() != Kind::Input {
            wrong.push(format!("{text}{error}\n{found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
