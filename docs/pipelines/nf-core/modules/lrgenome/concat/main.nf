process LRGENOME_CONCAT {
    tag "${meta.id}"
    label 'process_single'

    conda "${moduleDir}/environment.yml"
    container "${workflow.containerEngine in ['singularity', 'apptainer'] && !task.ext.singularity_pull_docker_container
        ? 'https://depot.galaxyproject.org/singularity/lrgenome:0.1.0--pyhdfd78af_0'
        : 'quay.io/biocontainers/lrgenome:0.1.0--pyhdfd78af_0'}"

    input:
    tuple val(meta), path(parts)

    output:
    tuple val(meta), path("${prefix}.${suffix}"), emit: embeddings
    tuple val("${task.process}"), val('lrgenome'), eval("lrgenome --version | sed 's/lrgenome //'"), topic: versions, emit: versions_lrgenome

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    prefix = task.ext.prefix ?: "${meta.id}"
    suffix = task.ext.suffix ?: 'h5'
    """
    lrgenome concat \\
        ${args} \\
        --output ${prefix}.${suffix} \\
        ${parts}
    """

    stub:
    prefix = task.ext.prefix ?: "${meta.id}"
    suffix = task.ext.suffix ?: 'h5'
    """
    touch ${prefix}.${suffix}
    """
}
