process LRGENOME_EMBED {
    tag "${meta.id}"
    label 'process_medium'

    conda "${moduleDir}/environment.yml"
    container "${workflow.containerEngine in ['singularity', 'apptainer'] && !task.ext.singularity_pull_docker_container
        ? 'https://depot.galaxyproject.org/singularity/lrgenome:0.1.0--pyhdfd78af_0'
        : 'quay.io/biocontainers/lrgenome:0.1.0--pyhdfd78af_0'}"

    input:
    tuple val(meta), path(fasta), path(fai), path(gzi), val(shard)
    tuple val(meta2), path(bed)
    tuple val(meta3), path(model)

    output:
    tuple val(meta), path("*.{h5,h5ad}"), emit: embeddings
    tuple val("${task.process}"), val('lrgenome'), eval("lrgenome --version | sed 's/lrgenome //'"), topic: versions, emit: versions_lrgenome

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    def prefix = task.ext.prefix ?: (shard ? "${meta.id}.${shard}" : "${meta.id}")
    def suffix = task.ext.suffix ?: 'h5'
    def bed_option = bed ? "--bed ${bed}" : ''
    def shard_option = shard ? "--shard ${shard}" : ''
    def model_option = model ? "--model ${model}" : ''
    def memory_option = task.memory ? "--max-memory ${task.memory.toMega()}MB" : ''
    """
    lrgenome embed \\
        ${args} \\
        ${bed_option} \\
        ${shard_option} \\
        ${model_option} \\
        ${memory_option} \\
        --threads ${task.cpus} \\
        --output ${prefix}.${suffix} \\
        ${fasta}
    """

    stub:
    def prefix = task.ext.prefix ?: (shard ? "${meta.id}.${shard}" : "${meta.id}")
    def suffix = task.ext.suffix ?: 'h5'
    """
    touch ${prefix}.${suffix}
    """
}
