# in:  the data sets named in the study (or none, for the synthetic source)
# out: packs/<pack>/{manifest.json, images.npy}, splits/<part>/<subset>.{json,npz}


rule pack:
    """Decode a data set once into memory-mapped arrays, shared between studies."""
    output:
        manifest=MANIFEST,
        images=MANIFEST.replace("manifest.json", "images.npy"),
    log:
        f"{LOG}/pack/{{pack}}.log",
    benchmark:
        f"{BENCHMARK}/pack/{{pack}}.jsonl"
    conda:
        "../../envs/viny.yaml"
    threads: STUDY["compute"]["pack_threads"]
    resources:
        mem_mb=2000,
        runtime=240,
    params:
        spec=spec("pack", lambda w: grid.pack_spec(STUDY, w.pack)),
        store=STUDY["pack_store"],
    shell:
        "exec {PYTHON:q} -m viny pack --spec {params.spec:q} --store {params.store:q} --threads {threads}"
        " --manifest {output.manifest:q} > {log:q} 2>&1"


def split_spec(wildcards):
    part, subset = wildcards.part, wildcards.subset
    if part == "intermediate":
        return grid.task_split_spec(STUDY, subset)
    size, seed = (int(piece.split("-")[1]) for piece in subset.split("_"))
    make = {"pretrain": grid.pretrain_split_spec, "finetune": grid.finetune_split_spec}[part]
    return make(STUDY, size, seed)


def pack_of_split(wildcards):
    named = {"pretrain": "pretrain", "finetune": "segmentation"}
    return MANIFEST.format(pack=named.get(wildcards.part, wildcards.subset))


rule split:
    """Write the index lists of one subset and its test set."""
    input:
        manifest=pack_of_split,
    output:
        record=SPLIT,
        indices=INDICES,
    log:
        f"{LOG}/split/{{part}}/{{subset}}.log",
    benchmark:
        f"{BENCHMARK}/split/{{part}}/{{subset}}.jsonl"
    conda:
        "../../envs/viny.yaml"
    resources:
        mem_mb=2000,
        runtime=20,
    params:
        spec=spec("split", split_spec),
    shell:
        "exec {PYTHON:q} -m viny split --spec {params.spec:q} --manifest {input.manifest:q}"
        " --record {output.record:q} --indices {output.indices:q} > {log:q} 2>&1"
