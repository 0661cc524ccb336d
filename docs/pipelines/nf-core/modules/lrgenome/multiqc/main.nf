process LRGENOME_MULTIQC {
    tag "${meta.id}"
    label 'process_single'

    conda "${moduleDir}/environment.yml"
    container "${workflow.containerEngine in ['singularity', 'apptainer'] && !task.ext.singularity_pull_docker_container
        ? 'https://depot.galaxyproject.org/singularity/lrgenome:0.1.0--pyhdfd78af_0'
        : 'quay.io/biocontainers/lrgenome:0.1.0--pyhdfd78af_0'}"

    input:
    tuple val(meta), path(counts)

    output:
    tuple val(meta), path("*_mqc.json"), emit: mqc
    tuple val("${task.process}"), val('lrgenome'), eval("lrgenome --version | sed 's/lrgenome //'"), topic: versions, emit: versions_lrgenome

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    def prefix = task.ext.prefix ?: "${meta.id}"
    """
    lrgenome multiqc \\
        ${args} \\
        --output ${prefix} \\
        ${counts}
    """

    stub:
    def prefix = task.ext.prefix ?: "${meta.id}"
    """
    touch ${prefix}.status_mqc.json
    touch ${prefix}.score_mqc.json
    """
}
