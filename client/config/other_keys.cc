#include "client/config/key_rows.h"

namespace sherd::config {
namespace {

constexpr absl::string_view kWatch =
    "no effect: `sherd top` and `sherd status` show a running job, and the program writes its own step log";
constexpr absl::string_view kModule =
    "no effect: what forward and backward keep or recompute is the program's own";
constexpr absl::string_view kElastic = "with elasticity.enabled: as in DeepSpeed";
constexpr absl::string_view kPages =
    "no effect: no monitor is written to; servers offer Prometheus metrics (`sherdd --metrics`)";

constexpr KeySpec kKeys[] = {
    Free("_comment").Honoured("a remark: passed over"),
    Integer("steps_per_print", 1).Default("null").Warned(kWatch),
    Bool("wall_clock_breakdown").Default("false").Unless("false").Warned(kWatch),
    Bool("memory_breakdown").Default("false").Unless("false").Warned(kWatch),
    Bool("dump_state").Default("false").Unless("false").Warned(kWatch),
    Text("log_level").Default("null").Warned("no effect: `sherdd --log-level` sets that of a server"),
    Object("timers").Warned(kWatch),
    Object("timers.throughput").Warned(kWatch),
    Bool("timers.throughput.enabled").Default("true"),
    Bool("timers.throughput.synchronized").Default("true"),
    Object("flops_profiler").Honoured("see its keys"),
    Bool("flops_profiler.enabled").Default("false").Unless("false").Warned("no effect: there is no profiler"),
    Number("flops_profiler.recompute_fwd_factor", 0).Default("0"),
    Integer("flops_profiler.profile_step", 0).Default("1"),
    Integer("flops_profiler.module_depth", -1).Default("-1"),
    Integer("flops_profiler.top_modules", 0).Default("1"),
    Bool("flops_profiler.detailed").Default("true"),
    Text("flops_profiler.output_file").Default("null"),
    Object("comms_logger").Honoured("see its keys"),
    Bool("comms_logger.enabled").Default("false").Unless("false").Warned(kWatch),
    Bool("comms_logger.prof_all").Default("true"),
    Texts("comms_logger.prof_ops").Default("[]"),
    Bool("comms_logger.verbose").Default("false"),
    Bool("comms_logger.debug").Default("false"),
    Object("comms_config").Honoured("no key of DeepSpeed's, but written by others' templates: see its keys"),
    Bool("comms_config.verbose").Default("false").Unless("false").Warned(kWatch),
    Object("tensorboard").Honoured("see its keys"),
    Bool("tensorboard.enabled").Default("false").Unless("false").Warned(kPages),
    Text("tensorboard.output_path"),
    Text("tensorboard.job_name").Default("DeepSpeedJobName"),
    Object("wandb").Honoured("see its keys"),
    Bool("wandb.enabled").Default("false").Unless("false").Warned(kPages),
    Text("wandb.group").Default("null"),
    Text("wandb.team").Default("null"),
    Text("wandb.project").Default("deepspeed"),
    Object("csv_monitor").Honoured("see its keys"),
    Bool("csv_monitor.enabled").Default("false").Unless("false").Warned(kPages),
    Text("csv_monitor.output_path"),
    Text("csv_monitor.job_name").Default("DeepSpeedJobName"),
    Object("comet").Honoured("see its keys"),
    Bool("comet.enabled").Default("false").Unless("false").Warned(kPages),
    Integer("comet.samples_log_interval", 1).Default("100"),
    Text("comet.project").Default("null"),
    Text("comet.workspace").Default("null"),
    Text("comet.api_key").Default("null"),
    Text("comet.experiment_name").Default("null"),
    Text("comet.experiment_key").Default("null"),
    Bool("comet.online").Default("null"),
    Text("comet.mode").Default("null"),
    Free("monitor_config").Warned(kPages),

    Object("checkpoint").Honoured("see its keys"),
    Choice("checkpoint.tag_validation", "Ignore|Warn|Fail")
        .Default("Warn")
        .Unless("Ignore|Warn|Fail")
        .Honoured("a checkpoint is of one step and one job by construction"),
    Bool("checkpoint.load_universal")
        .Default("false")
        .Unless("true|false")
        .Honoured("every checkpoint restores at any number of trainers and servers"),
    Bool("checkpoint.use_node_local_storage")
        .Default("false")
        .Unless("false")
        .Warned("no effect: one host writes one checkpoint"),
    Object("checkpoint.parallel_write").Honoured("see its keys"),
    Bool("checkpoint.parallel_write.pipeline_stage")
        .Default("false")
        .Unless("false")
        .Warned("no effect: servers write their own parts side by side, always"),
    Free("checkpoint.writer").Warned("no effect: servers write their own parts side by side, always"),
    Free("checkpoint.checkpoint_serialization")
        .Warned("no effect: formats are named when a checkpoint is written"),
    Free("nebula").Warned("no effect: no service of that kind is used; `sherd save` writes checkpoints"),
    Free("datastates_ckpt")
        .Warned("no effect: no service of that kind is used; `sherd save` writes checkpoints"),
    Bool("dataloader_drop_last")
        .Default("false")
        .Unless("false")
        .Warned("no effect: the program picks the samples that Begin() names"),

    Object("elasticity").Honoured("see its keys"),
    Bool("elasticity.enabled")
        .Default("false")
        .Unless("false")
        .Warned(
            "the batch is chosen by DeepSpeed's rule, to suit as many numbers of trainers as possible; the "
            "number itself stays as it is while a job runs (that of servers does not: `sherd resize`)"),
    Integer("elasticity.max_train_batch_size", 1, 1e9).Default("2000").Honoured(kElastic),
    Numbers("elasticity.micro_batch_sizes", 1, 1e9).Default("[2, 4, 6]").Honoured(kElastic),
    Integer("elasticity.min_gpus", 1, 1e9).Default("1").Honoured(kElastic),
    Integer("elasticity.max_gpus", 1, 1e9).Default("10000").Honoured(kElastic),
    Integer("elasticity.num_gpus_per_node", 1, 1e6).Default("1").Honoured(kElastic),
    Bool("elasticity.prefer_larger_batch").Default("true").Honoured(kElastic),
    Number("elasticity.version", 0.1, 0.2).Default("0.2").Honoured(kElastic),
    Integer("elasticity.min_time", 0).Default("0"),
    Integer("elasticity.model_parallel_size", 1)
        .Default("1")
        .Unless("1")
        .Refused("model parallelism is not there; set it to 1"),
    Bool("elasticity.ignore_non_elastic_batch_info")
        .Default("false")
        .Honoured("true: batch sizes of the file do not count. false: they are an error beside elasticity"),

    Object("activation_checkpointing").Warned(kModule),
    Bool("activation_checkpointing.partition_activations").Default("false").Unless("false").Warned(kModule),
    Bool("activation_checkpointing.cpu_checkpointing").Default("false").Unless("false").Warned(kModule),
    Bool("activation_checkpointing.contiguous_memory_optimization")
        .Default("false")
        .Unless("false")
        .Warned(kModule),
    Integer("activation_checkpointing.number_checkpoints", 0).Default("null").Warned(kModule),
    Bool("activation_checkpointing.synchronize_checkpoint_boundary")
        .Default("false")
        .Unless("false")
        .Warned(kModule),
    Bool("activation_checkpointing.profile").Default("false").Unless("false").Warned(kModule),
    Bool("graph_harvesting").Default("false").Unless("false").Warned(kModule),
    Free("compile").Warned(kModule),
    Integer("vocabulary_size", 1).Default("null").Warned(kModule),
    Bool("disable_allgather").Default("false").Unless("false").Warned("no effect: there is no all-gather"),
    Integer("allgather_size", 0).Warned("no effect: there is no all-gather"),
    Bool("use_data_before_expert_parallelism")
        .Default("false")
        .Unless("false")
        .Warned("no effect: there is no expert parallelism"),
    Integer("sequence_parallel_size", 1)
        .Default("1")
        .Unless("1")
        .Refused("sequence parallelism is not there; set it to 1"),
    Integer("data_parallel_size", 1).Default("null").Warned("no effect: it is the number of trainers (`-n`)"),
    Free("autotuning").Warned("no effect: there is no autotuner; `sherd plan` shows what a setting costs"),

    Free("tensor_parallel").Refused("tensor parallelism is not there; remove the object"),
    Free("expert_parallel").Refused("expert parallelism is not there; remove the object"),
    Free("pipeline").Refused("pipeline parallelism is not there; remove the object"),
    Free("sparse_attention").Refused("attention is the model's own; remove the object"),
    Free("progressive_layer_drop")
        .Refused("it changes the model, which is the program's own; remove the object"),
    Free("eigenvalue").Refused("it belongs to compression, which is not there; remove the object"),
    Free("quantize_training").Refused("quantised training is not there; remove the object"),
    Free("compression_training").Refused("compression is not there; remove the object"),
    Free("weight_quantization").Refused("quantisation is not there; remove the object"),
    Free("curriculum_learning").Refused("samples are the program's own; remove the object"),
    Free("data_efficiency").Refused("samples are the program's own; remove the object"),
    Free("hybrid_engine").Refused("generation during training is the program's own; remove the object"),
};

}  // namespace

absl::Span<const KeySpec> OtherKeys() { return kKeys; }

}  // namespace sherd::config
