# in:  the data sets named in the study (or none, for the synthetic source)
# out: packs/<pack>/{manifest.json, images.npy}, starts/<start>/encoder.{safetensors,json}, splits/<part>/<subset>.{json,npz}, tables/duplicates.{csv,md}, summaries/duplicates.json


rule pack:
    """Decode a data set once into memory-mapped arrays, shared between studies."""
    input:
        redo=belongs,
    output:
        manifest=MANIFEST,
        images=PACKED,
    log:
        log_of("pack", "{pack}"),
    benchmark:
        benchmark_of("pack", "{pack}")
    priority: 3  # everything else waits for it
    localrule: True  # compute nodes may have neither the data sets nor the internet
    conda:
        PACKAGES
    threads: STUDY["compute"]["pack_threads"]
    resources:
        mem_mb=workload.PACK_MB,
        runtime=pack_minutes,
    params:
        spec=spec("pack", lambda w: specs.pack_spec(STUDY, w.pack)),
        store=lambda w: STUDY["pack_store"],  # a text would be taken for a pattern
    shell:
        "exec python -m viny pack --spec {params.spec:q} --store={params.store:q} --threads {threads}"
        " --manifest {output.manifest:q} > {log:q} 2>&1"


if STARTS:

    rule start:
        """Read published weights, from a file or timm's own, into the study's format."""
        input:
            redo=belongs,
        output:
            **{what: below(pattern) for what, pattern in layout.START.items()},
        log:
            log_of("start", "{start}"),
        benchmark:
            benchmark_of("start", "{start}")
        priority: 3
        localrule: True  # compute nodes may have neither the file nor the internet
        conda:
            PACKAGES
        resources:
            mem_mb=2000,
            runtime=30,
        params:
            spec=spec("start", lambda w: specs.start_spec(STUDY, w.start)),
        shell:
            "exec python -m viny start --spec {params.spec:q} --weights {output.weights:q} --record {output.record:q}"
            " > {log:q} 2>&1"


rule split:
    """Write the index lists of one subset and its test set."""
    input:
        manifest=pack_of_split,
    output:
        record=SPLIT,
        indices=INDICES,
    log:
        log_of("split", "{part}", "{subset}"),
    benchmark:
        benchmark_of("split", "{part}", "{subset}")
    priority: 3
    localrule: True
    conda:
        PACKAGES
    resources:
        mem_mb=2000,
        runtime=20,
    params:
        spec=spec("split", lambda w: specs.split_spec(STUDY, w.part, w.subset)),
    shell:
        "exec python -m viny split --spec {params.spec:q} --manifest {input.manifest:q}"
        " --record {output.record:q} --indices {output.indices:q} > {log:q} 2>&1"


rule duplicates:
    """Look for training images among the test images."""
    input:
        manifests=expand(MANIFEST, pack=SEARCHED_PACKS),
        splits=SEARCHED_SPLITS,
        indices=ancient([indices_of(record) for record in SEARCHED_SPLITS]),
        images=ancient(expand(PACKED, pack=SEARCHED_PACKS)),
    output:
        tables=DUPLICATES,
        record=summary_of("duplicates"),
    log:
        log_of("duplicates"),
    benchmark:
        benchmark_of("duplicates")
    localrule: True
    conda:
        PACKAGES
    resources:
        mem_mb=1000,
        runtime=30,
    params:
        spec=spec("duplicates", lambda w: SEARCH),
        root=lambda w, output: Path(output.tables[0]).parents[1],
    shell:
        "exec python -m viny duplicates --spec {params.spec:q} --root {params.root:q}"
        " --out {params.root:q} --record {output.record:q} > {log:q} 2>&1"
