process LRGENOME_SCOREVCF {
    tag "${meta.id}"
    label 'process_medium'

    conda "${moduleDir}/environment.yml"
    container "${workflow.containerEngine in ['singularity', 'apptainer'] && !task.ext.singularity_pull_docker_container
        ? 'https://depot.galaxyproject.org/singularity/lrgenome:0.1.0--pyhdfd78af_0'
        : 'quay.io/biocontainers/lrgenome:0.1.0--pyhdfd78af_0'}"

    input:
    tuple val(meta), path(vcf), val(shard)
    tuple val(meta2), path(fasta), path(fai), path(gzi)
    tuple val(meta3), path(model)

    output:
    tuple val(meta), path("*.{tsv,tsv.gz,vcf,vcf.gz,bcf}"), emit: scores
    tuple val(meta), path("*.{tbi,csi}"), emit: index, optional: true
    tuple val(meta), path("*.summary.json"), emit: summary
    tuple val("${task.process}"), val('lrgenome'), eval("lrgenome --version | sed 's/lrgenome //'"), topic: versions, emit: versions_lrgenome

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    def prefix = task.ext.prefix ?: (shard ? "${meta.id}.${shard}" : "${meta.id}")
    def suffix = task.ext.suffix ?: 'tsv.gz'
    def shard_option = shard ? "--shard ${shard}" : ''
    def model_option = model ? "--model ${model}" : ''
    def memory_option = task.memory ? "--max-memory ${task.memory.toMega()}MB" : ''
    if ("${vcf}" == "${prefix}.${suffix}") error("Input and output names are the same, set prefix in module configuration to disambiguate!")
    """
    lrgenome score-vcf \\
        ${args} \\
        --fasta ${fasta} \\
        ${shard_option} \\
        ${model_option} \\
        ${memory_option} \\
        --threads ${task.cpus} \\
        --output ${prefix}.${suffix} \\
        --summary ${prefix}.summary.json \\
        ${vcf}
    """

    stub:
    def prefix = task.ext.prefix ?: (shard ? "${meta.id}.${shard}" : "${meta.id}")
    def suffix = task.ext.suffix ?: 'tsv.gz'
    def create = suffix.endsWith('.gz') ? "echo '' | gzip >" : 'touch'
    """
    ${create} ${prefix}.${suffix}
    touch ${prefix}.summary.json
    """
}
