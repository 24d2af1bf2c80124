#include "client/config/key_rows.h"
#include "core/job_spec.h"

namespace sherd::config {
namespace {

constexpr absl::string_view kShared =
    "no effect: parameters are one copy per host in shared memory, which every trainer reads in place";
constexpr absl::string_view kNoCollective =
    "no effect: gradients go to the servers through shared memory and are reduced there block by block; "
    "there "
    "are "
    "no collectives to choose, order or merge";
constexpr absl::string_view kHostMemory =
    "no effect: what is offloaded already lies in the servers' shared memory on the host; there are no "
    "transfers "
    "to pin, tile or buffer";
constexpr absl::string_view kNoNvme =
    "kept in host memory: this version has no NVMe offload, so the state must fit in /dev/shm (see `sherd "
    "plan`)";
constexpr absl::string_view kQuantised =
    "no effect: parameters and gradients are never quantised, between hosts neither";

constexpr KeySpec kKeys[] = {
    Object("zero_optimization").Honoured("see its keys"),
    Integer("zero_optimization.stage", 0, 3)
        .Default("0")
        .Honoured("as it is. In stage 3 parameters are there only while a block computes; on one host their "
                  "segment "
                  "is the one copy, so gathering moves no bytes"),
    Bool("zero_optimization.contiguous_gradients")
        .Default("true")
        .Unless("true")
        .Warned("no effect: gradients are always contiguous in staging"),
    Bool("zero_optimization.reduce_scatter").Default("true").Unless("true").Warned(kNoCollective),
    Integer("zero_optimization.reduce_bucket_size", 0)
        .Default("5e8")
        .Honoured(
            "the most elements that are reduced together; Sherd takes at most 4194304, since more costs "
            "memory and gains nothing. \"auto\": the square of the model's hidden size"),
    Bool("zero_optimization.use_multi_rank_bucket_allreduce")
        .Default("true")
        .Unless("true")
        .Warned(kNoCollective),
    Bool("zero_optimization.allgather_partitions").Default("true").Unless("true").Warned(kShared),
    Integer("zero_optimization.allgather_bucket_size", 0).Default("5e8").Warned(kShared),
    Bool("zero_optimization.overlap_comm")
        .Default("null")
        .Warned("no effect: stage 2 reduces during backward whenever the host has cores for it"),
    Bool("zero_optimization.load_from_fp32_weights")
        .Default("true")
        .Unless("true")
        .Warned("no effect: masters are always stored and restored in fp32"),
    Bool("zero_optimization.elastic_checkpoint")
        .Default("false")
        .Unless("false")
        .Warned("no effect: what is pulled or saved is whole, for any number of trainers and servers"),
    Object("zero_optimization.offload_param").Honoured("see its keys"),
    Choice("zero_optimization.offload_param.device", "none|cpu|nvme")
        .Default("none")
        .Unless("none|cpu")
        .Warned(kNoNvme),
    Text("zero_optimization.offload_param.nvme_path").Warned(kNoNvme),
    Integer("zero_optimization.offload_param.buffer_count", 0).Default("5").Unless("5").Warned(kHostMemory),
    Integer("zero_optimization.offload_param.buffer_size", 0)
        .Default("1e8")
        .Unless("1e8")
        .Warned(kHostMemory),
    Integer("zero_optimization.offload_param.max_in_cpu", 0).Default("1e9").Unless("1e9").Warned(kHostMemory),
    Bool("zero_optimization.offload_param.pin_memory").Default("true").Warned(kHostMemory),
    Object("zero_optimization.offload_optimizer").Honoured("see its keys"),
    Choice("zero_optimization.offload_optimizer.device", "none|cpu|nvme")
        .Default("none")
        .Unless("none|cpu")
        .Warned(kNoNvme),
    Text("zero_optimization.offload_optimizer.nvme_path").Warned(kNoNvme),
    Integer("zero_optimization.offload_optimizer.buffer_count", 0)
        .Default("4")
        .Unless("4")
        .Warned(kHostMemory),
    Bool("zero_optimization.offload_optimizer.pin_memory").Default("true").Warned(kHostMemory),
    Bool("zero_optimization.offload_optimizer.pipeline").Default("false").Unless("false").Warned(kHostMemory),
    Bool("zero_optimization.offload_optimizer.pipeline_read")
        .Default("false")
        .Unless("false")
        .Warned(kHostMemory),
    Bool("zero_optimization.offload_optimizer.pipeline_write")
        .Default("false")
        .Unless("false")
        .Warned(kHostMemory),
    Bool("zero_optimization.offload_optimizer.fast_init")
        .Default("false")
        .Unless("false")
        .Warned(kHostMemory),
    Number("zero_optimization.offload_optimizer.ratio", 0, 1)
        .Default("1.0")
        .Unless("1.0|1")
        .Warned("all of the optimizer's state is in host memory, and the servers apply all of it"),
    Bool("zero_optimization.offload_optimizer.super_offload")
        .Default("false")
        .Unless("false")
        .Warned(kHostMemory),
    Number("zero_optimization.offload_optimizer.cpuadam_cores_perc", 0, 1)
        .Default("0.8")
        .Warned("no effect: `sherd run --threads` says how many threads each server has"),
    Free("zero_optimization.zenflow")
        .Refused("selective asynchronous updates change the result of training and are not there; remove the "
                 "object"),
    Integer("zero_optimization.sub_group_size", 0).Default("1e9").Warned(kHostMemory),
    Bool("zero_optimization.cpu_offload")
        .Default("false")
        .Unless("false|true")
        .Warned("honoured: the old name of offload_optimizer with device cpu"),
    Bool("zero_optimization.cpu_offload_param")
        .Default("false")
        .Unless("false|true")
        .Warned("honoured: the old name of offload_param with device cpu"),
    Bool("zero_optimization.cpu_offload_params")
        .Default("false")
        .Unless("false|true")
        .Warned("honoured: the old name of offload_param with device cpu"),
    Bool("zero_optimization.cpu_offload_use_pin_memory").Default("false").Unless("false").Warned(kHostMemory),
    Integer("zero_optimization.stage3_prefetch_bucket_size", 0)
        .Default("5e7")
        .Honoured(
            "elements gathered ahead of their use; 0: none. \"auto\": 0.9 times the square of the model's "
            "hidden size"),
    Integer("zero_optimization.stage3_param_persistence_threshold", 0)
        .Default("1e5")
        .Honoured(
            "tensors of at most so many elements are never released. \"auto\": 10 times the hidden size"),
    Integer("zero_optimization.stage3_model_persistence_threshold", 0, 1e19)
        .Default("2^63-1")
        .Honoured("the most elements of all tensors that are never released"),
    Integer("zero_optimization.stage3_max_live_parameters", 0)
        .Default("1e9")
        .Honoured("nothing is kept or gathered ahead beyond so many elements, those that are never released "
                  "not counted"),
    Integer("zero_optimization.stage3_max_reuse_distance", 0)
        .Default("1e9")
        .Honoured("what is used again before so many other elements are stays gathered"),
    Bool("zero_optimization.stage3_gather_16bit_weights_on_model_save")
        .Default("false")
        .Unless("true|false")
        .Honoured("always possible: `sherd pull --dtype bf16` (or fp16) writes the whole model while "
                  "training goes on"),
    Bool("zero_optimization.stage3_gather_fp16_weights_on_model_save")
        .Default("false")
        .Unless("true|false")
        .Honoured("the old name of stage3_gather_16bit_weights_on_model_save"),
    Integer("zero_optimization.stage3_module_granularity_threshold", 0)
        .Default("0")
        .Unless("0")
        .Warned(kShared),
    Bool("zero_optimization.stage3_use_all_reduce_for_fetch_params")
        .Default("false")
        .Unless("false")
        .Warned(kShared),
    Bool("zero_optimization.stage3_allgather_sequential").Default("false").Unless("false").Warned(kShared),
    // The same without their prefix, which DeepSpeed also reads.
    Integer("zero_optimization.prefetch_bucket_size", 0)
        .Default("5e7")
        .Honoured("the same as stage3_prefetch_bucket_size"),
    Integer("zero_optimization.param_persistence_threshold", 0)
        .Default("1e5")
        .Honoured("the same as stage3_param_persistence_threshold"),
    Integer("zero_optimization.model_persistence_threshold", 0, 1e19)
        .Default("2^63-1")
        .Honoured("the same as stage3_model_persistence_threshold"),
    Integer("zero_optimization.max_live_parameters", 0)
        .Default("1e9")
        .Honoured("the same as stage3_max_live_parameters"),
    Integer("zero_optimization.max_reuse_distance", 0)
        .Default("1e9")
        .Honoured("the same as stage3_max_reuse_distance"),
    Bool("zero_optimization.gather_16bit_weights_on_model_save")
        .Default("false")
        .Unless("true|false")
        .Honoured("the same as stage3_gather_16bit_weights_on_model_save"),
    Integer("zero_optimization.module_granularity_threshold", 0).Default("0").Unless("0").Warned(kShared),
    Bool("zero_optimization.use_all_reduce_for_fetch_params")
        .Default("false")
        .Unless("false")
        .Warned(kShared),
    Bool("zero_optimization.allgather_sequential").Default("false").Unless("false").Warned(kShared),
    Bool("zero_optimization.ignore_unused_parameters")
        .Default("true")
        .Unless("true")
        .Warned("unused parameters are never an error: a parameter without a gradient on any rank is not "
                "updated, "
                "as in one process"),
    Bool("zero_optimization.legacy_stage1")
        .Default("false")
        .Unless("false")
        .Warned("no effect: there is one implementation of stage 1"),
    Bool("zero_optimization.round_robin_gradients").Default("false").Unless("false").Warned(kNoCollective),
    Integer("zero_optimization.zero_hpz_partition_size", 0, kMaxWorldSize)
        .Default("1")
        .Honoured(
            "0 or 1: off. The number of ranks of a host (of any): in stage 3 each host keeps what it has "
            "gathered until values change, whatever stage3_max_live_parameters says, so that backward "
            "gathers nothing from other hosts; it takes the memory of whole parameters on every host "
            "(`sherd plan`). Of several hosts any other number is an error: ranks of several hosts, or "
            "some of one, share no second copy. On one host nothing is sent, and no number has an "
            "effect"),
    Bool("zero_optimization.zero_quantized_weights").Default("false").Unless("false").Warned(kQuantised),
    Bool("zero_optimization.zero_quantized_nontrainable_weights")
        .Default("false")
        .Unless("false")
        .Warned(kQuantised),
    Bool("zero_optimization.zero_quantized_gradients").Default("false").Unless("false").Warned(kQuantised),
    Free("zero_optimization.zeropp_loco_param").Warned(kQuantised),
    Integer("zero_optimization.mics_shard_size", -1)
        .Default("-1")
        .Honoured(
            "on several hosts: groups of so many ranks, those of one host or of several, hold the state "
            "once each. On one host there is one copy in any case"),
    Bool("zero_optimization.mics_hierarchical_params_gather")
        .Default("false")
        .Unless("false")
        .Warned("no effect: a host gathers each block once for all its ranks"),
    Bool("zero_optimization.memory_efficient_linear")
        .Default("true")
        .Unless("true")
        .Warned("no effect: layers are the program's own"),
    Bool("zero_optimization.pipeline_loading_checkpoint").Default("false").Unless("false").Warned(kShared),
    Bool("zero_optimization.override_module_apply").Default("true").Unless("true").Warned(kShared),
    Bool("zero_optimization.log_trace_cache_warnings").Default("false").Unless("false").Warned(kShared),
    Bool("zero_optimization.enable_sanity_checks")
        .Default("false")
        .Unless("false|true")
        .Honoured(
            "always on: a gradient that is not finite, ranks that disagree and stray writes are found in "
            "every step"),
    Bool("zero_optimization.save_muon_momentum_buffer_in_memory")
        .Default("false")
        .Unless("false|true")
        .Honoured("always: optimizer state is in memory"),
    Object("zero_optimization.leaf_module").Warned(kShared),
    Texts("zero_optimization.leaf_module.classes").Warned(kShared),
    Texts("zero_optimization.leaf_module.names").Warned(kShared),
    Texts("zero_optimization.leaf_module.name_suffixes").Warned(kShared),
    Object("aio").Warned("no effect: this version has no NVMe offload"),
    Integer("aio.block_size", 1).Default("1048576"),
    Integer("aio.queue_depth", 1).Default("8"),
    Integer("aio.thread_count", 1).Default("1"),
    Integer("aio.intra_op_parallelism", 1).Default("1"),
    Bool("aio.single_submit").Default("false"),
    Bool("aio.overlap_events").Default("true"),
    Bool("aio.use_gds").Default("false"),
};

}  // namespace

absl::Span<const KeySpec> ZeroKeys() { return kKeys; }

}  // namespace sherd::config
