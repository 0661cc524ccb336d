// Shards of lrgenome/scorevcf as one indexed table; they come in order, the first has the header.
process LRGENOME_GATHER {
    tag "${meta.id}"
    label 'process_single'

    conda "${moduleDir}/environment.yml"
    container "${workflow.containerEngine in ['singularity', 'apptainer'] && !task.ext.singularity_pull_docker_container
        ? 'https://depot.galaxyproject.org/singularity/htslib:1.21--h566b1c6_1'
        : 'quay.io/biocontainers/htslib:1.21--h566b1c6_1'}"

    input:
    tuple val(meta), path(parts)

    output:
    tuple val(meta), path("${prefix}.tsv.gz"), emit: scores
    tuple val(meta), path("${prefix}.tsv.gz.{tbi,csi}"), emit: index
    tuple val("${task.process}"), val('tabix'), eval("tabix --version | sed '1!d; s/.* //'"), topic: versions, emit: versions_tabix

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    cat ${parts} > ${prefix}.tsv.gz
    tabix ${args} --sequence 1 --begin 2 --end 2 ${prefix}.tsv.gz
    """

    stub:
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    echo '' | gzip > ${prefix}.tsv.gz
    touch ${prefix}.tsv.gz.tbi
    """
}
