//
// Score variants in shards; gather the tables into one with an index, and the counts into one sample of MultiQC
//
include { LRGENOME_SCOREVCF } from '../../../modules/lrgenome/scorevcf/main'
include { LRGENOME_MULTIQC  } from '../../../modules/lrgenome/multiqc/main'
include { LRGENOME_GATHER   } from '../../../modules/local/lrgenome_gather/main'

workflow LRGENOME_SHARDS {
    take:
    ch_vcf   // channel: [ val(meta), path(vcf) ]
    ch_fasta // value channel: [ val(meta2), path(fasta), path(fai), path(gzi) ]
    ch_model // value channel: [ val(meta3), path(model) ]; [ [:], [] ] is the embedded model
    shards   // integer: number of shards

    main:
    ch_shards = ch_vcf
        .combine(channel.of(1..shards))
        .map { meta, vcf, number -> [meta + [shard: number], vcf, "${number}-of-${shards}"] }

    LRGENOME_SCOREVCF(ch_shards, ch_fasta, ch_model)

    // As soon as all shards of a sample are there, and in their order, whichever was done first
    ch_parts = LRGENOME_SCOREVCF.out.scores
        .map { meta, part -> [groupKey(meta.findAll { entry -> entry.key != 'shard' }, shards), meta.shard, part] }
        .groupTuple()
        .map { key, numbers, parts -> [key.target, [numbers, parts].transpose().sort { pair -> pair[0] }.collect { pair -> pair[1] }] }

    ch_counts = LRGENOME_SCOREVCF.out.summary
        .map { meta, part -> [groupKey(meta.findAll { entry -> entry.key != 'shard' }, shards), part] }
        .groupTuple()
        .map { key, parts -> [key.target, parts] }

    LRGENOME_GATHER(ch_parts)
    LRGENOME_MULTIQC(ch_counts)

    emit:
    scores = LRGENOME_GATHER.out.scores // channel: [ val(meta), path(tsv.gz) ]
    index  = LRGENOME_GATHER.out.index  // channel: [ val(meta), path(tbi) ]
    mqc    = LRGENOME_MULTIQC.out.mqc   // channel: [ val(meta), path(json) ]
}
