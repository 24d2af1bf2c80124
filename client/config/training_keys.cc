#include "client/config/key_rows.h"

namespace sherd::config {
namespace {

constexpr absl::string_view kBatch =
    "with the other two: train_batch_size = train_micro_batch_size_per_gpu x gradient_accumulation_steps x "
    "trainers. Two of them give the third, exactly; one of the first two alone means accumulation 1";
constexpr absl::string_view kExact =
    "no effect: gradients are summed in fp32 in the order of ranks and divided once, by the samples";
constexpr absl::string_view kScale = "dynamic loss scale of fp16";

constexpr KeySpec kKeys[] = {
    Integer("train_batch_size", 1).Honoured(kBatch),
    Integer("train_micro_batch_size_per_gpu", 1).Honoured(kBatch),
    Integer("gradient_accumulation_steps", 1, 1 << 15).Default("1").Honoured(kBatch),
    Bool("managed_gradient_accumulation")
        .Default("true")
        .Unless("true")
        .Refused("Sherd counts the micro-batches of a step; set it to true"),
    Number("gradient_clipping", 0)
        .Default("1.0")
        .Honoured(
            "largest global norm of the gradient; 0: no clipping. The same result in every stage and for any "
            "number of servers"),
    Bool("prescale_gradients").Default("false").Unless("false").Warned(kExact),
    Number("gradient_predivide_factor", 0).Above().Default("1.0").Unless("1|1.0").Warned(kExact),
    Choice("gradient_allreduce_op", "mean|sum")
        .Default("mean")
        .Unless("mean")
        .Refused("gradients are means over samples; set it to mean and multiply the loss instead"),
    Bool("sparse_gradients")
        .Default("false")
        .Unless("false")
        .Warned("no effect: gradients of embeddings are dense; a row without gradient is a row of zeros"),

    Object("optimizer").Honoured("see its keys; without it, the program's own optimizer"),
    Choice("optimizer.type",
           "Adam|AdamW|SGD|Adagrad|Lamb|Lion|Muon|OneBitAdam|ZeroOneAdam|OneBitLamb|MuAdam|MuAdamW|MuSGD")
        .Honoured(
            "\"Adam\" is AdamW unless adam_w_mode is false. The compressed (OneBit, ZeroOne) and the muP "
            "variants are refused: not there"),
    Object("optimizer.params").Honoured("see its keys; one that the optimizer does not have is an error"),
    Number("optimizer.params.lr", 0)
        .Default("1e-3")
        .Honoured("learning rate; of Adagrad 1e-2 by default; of Muon see muon_lr"),
    Numbers("optimizer.params.betas", 0, 1)
        .Default("[0.9, 0.999]")
        .Honoured("decay of the moments, two numbers; of AdamW beside Muon [0.9, 0.95] by default"),
    Number("optimizer.params.eps", 0)
        .Default("1e-8")
        .Honoured("added to the denominator; of Adagrad, and of AdamW beside Muon, 1e-10 by default"),
    Number("optimizer.params.weight_decay", 0)
        .Default("0")
        .Honoured("decoupled in AdamW, Lion, Lamb and Muon, added to the gradient in Adam, SGD and Adagrad"),
    Number("optimizer.params.momentum", 0, 1)
        .Default("0")
        .Honoured("of SGD and Muon; of Muon 0.95 by default"),
    Number("optimizer.params.dampening", 0, 1).Default("0").Honoured("of SGD"),
    Bool("optimizer.params.nesterov").Default("false").Honoured("of SGD"),
    Bool("optimizer.params.adam_w_mode").Default("true").Honoured("false makes \"Adam\" plain Adam"),
    Bool("optimizer.params.torch_adam")
        .Default("false")
        .Unless("true|false")
        .Honoured("both are the same arithmetic here"),
    Bool("optimizer.params.bias_correction")
        .Default("true")
        .Unless("true")
        .Refused("moments are always corrected for their zero start; set it to true"),
    Bool("optimizer.params.amsgrad")
        .Default("false")
        .Unless("false")
        .Refused("AMSGrad is not there; set it to false"),
    Bool("optimizer.params.fp32_optimizer_states")
        .Default("true")
        .Unless("true")
        .Warned("the state is fp32, always"),
    Bool("optimizer.params.set_grad_none")
        .Default("true")
        .Warned("no effect: gradients are gone once delivered"),
    Number("optimizer.params.max_grad_norm", 0)
        .Unless("0|0.0")
        .Refused("write gradient_clipping at the top level instead"),
    Number("optimizer.params.lr_decay", 0).Default("0").Honoured("of Adagrad"),
    Number("optimizer.params.initial_accumulator_value", 0).Default("0").Honoured("of Adagrad"),
    Number("optimizer.params.max_coeff", 0).Default("10.0").Honoured("of Lamb: largest trust ratio"),
    Number("optimizer.params.min_coeff", 0).Default("0.01").Honoured("of Lamb: smallest trust ratio"),
    Bool("optimizer.params.eps_inside_sqrt")
        .Default("false")
        .Unless("false")
        .Refused("eps is added outside of the square root; set it to false"),
    Number("optimizer.params.muon_lr", 0)
        .Honoured("of Muon: learning rate of hidden matrices, instead of lr; 0.02 without either"),
    Number("optimizer.params.adam_lr", 0)
        .Honoured("of Muon: learning rate of all other parameters, instead of lr; 3e-4 without either"),
    Choice("optimizer.params.ns_method", "gram|standard")
        .Default("gram")
        .Unless("gram|standard")
        .Honoured("of Muon: both are the same iteration, up to rounding; Sherd's is its own, in fp32"),
    Integer("optimizer.params.freeze_step", 0),
    Bool("optimizer.params.cuda_aware"),
    Text("optimizer.params.comm_backend_name"),
    Bool("optimizer.legacy_fusion")
        .Default("false")
        .Unless("false")
        .Warned("no effect: there is no GPU fusion here"),
    Bool("zero_allow_untested_optimizer")
        .Default("false")
        .Unless("true|false")
        .Honoured("always: optimizers are the servers' own"),
    Bool("zero_force_ds_cpu_optimizer")
        .Default("true")
        .Unless("true|false")
        .Honoured("always: the servers' optimizers run on the CPU"),

    Object("scheduler").Honoured("see its keys; without it, the program's own learning rate"),
    Choice("scheduler.type", "WarmupLR|WarmupDecayLR|WarmupCosineLR|OneCycle|LRRangeTest")
        .Honoured("each as in DeepSpeed, by the updates that the job has made"),
    Object("scheduler.params").Honoured("see its keys; one that the scheduler does not have is an error"),
    Number("scheduler.params.warmup_min_lr", 0).Default("0").Honoured("learning rate to begin with"),
    Number("scheduler.params.warmup_max_lr", 0)
        .Default("0.001")
        .Honoured("learning rate after warm-up; \"auto\": that of the optimizer"),
    Integer("scheduler.params.warmup_num_steps", 1)
        .Default("1000")
        .Honoured("steps of warm-up; at least 2 are made of it, as in DeepSpeed"),
    Choice("scheduler.params.warmup_type", "log|linear").Default("log").Honoured("how the rate rises"),
    Integer("scheduler.params.total_num_steps", 1)
        .Honoured("steps until the rate is lowest; \"auto\": those of the program"),
    Number("scheduler.params.warmup_min_ratio", 0, 1).Default("0").Honoured("of WarmupCosineLR, times lr"),
    Number("scheduler.params.cos_min_ratio", 0, 1).Default("0.0001").Honoured("of WarmupCosineLR, times lr"),
    Integer("scheduler.params.last_batch_iteration", -1)
        .Default("-1")
        .Unless("-1")
        .Refused("a schedule goes on from the job's own step; remove it"),
    Number("scheduler.params.cycle_min_lr", 0)
        .Honoured("of OneCycle: learning rate to begin and end the cycle with"),
    Number("scheduler.params.cycle_max_lr", 0)
        .Honoured("of OneCycle: learning rate in its middle; \"auto\": that of the optimizer"),
    Integer("scheduler.params.cycle_first_step_size", 1)
        .Default("2000")
        .Honoured("of OneCycle: steps in which the rate rises"),
    Integer("scheduler.params.cycle_second_step_size", 0)
        .Honoured("of OneCycle: steps in which it falls; cycle_first_step_size by default"),
    Integer("scheduler.params.cycle_first_stair_count", -1)
        .Default("0")
        .Honoured("of OneCycle: stairs on the way up; 0 and -1: none, it changes with every step"),
    Integer("scheduler.params.cycle_second_stair_count", -1)
        .Honoured("of OneCycle: stairs on the way down; cycle_first_stair_count by default"),
    Integer("scheduler.params.decay_step_size", 0)
        .Default("0")
        .Honoured("of OneCycle: steps in which a decay rate counts once, after the cycle; 0: no decay"),
    Number("scheduler.params.decay_lr_rate", 0)
        .Default("0")
        .Honoured(
            "of OneCycle: how the rate falls after the cycle, cycle_min_lr / (1 + decay_lr_rate * steps / "
            "decay_step_size)"),
    Bool("scheduler.params.cycle_momentum")
        .Default("true")
        .Honoured("of OneCycle: the first beta falls while the rate rises, and back; the second is 0.99. "
                  "Optimizers without betas keep their momentum, with a warning"),
    Number("scheduler.params.cycle_min_mom", 0, 1)
        .Default("0.8")
        .Honoured("of OneCycle: first beta in the middle of the cycle, and at the very first step"),
    Number("scheduler.params.cycle_max_mom", 0, 1)
        .Default("0.9")
        .Honoured("of OneCycle: first beta at the ends of the cycle; below 1"),
    Number("scheduler.params.decay_mom_rate", 0)
        .Default("0")
        .Honoured(
            "of OneCycle: how the first beta rises after the cycle, cycle_max_mom * (1 + decay_mom_rate * "
            "steps / decay_step_size); it must stay below 1"),
    Number("scheduler.params.lr_range_test_min_lr", 0)
        .Default("0.001")
        .Honoured("of LRRangeTest: learning rate to begin with"),
    Integer("scheduler.params.lr_range_test_step_size", 1)
        .Default("2000")
        .Honoured("of LRRangeTest: steps in which the rate grows by lr_range_test_step_rate times the first"),
    Number("scheduler.params.lr_range_test_step_rate", 0)
        .Default("1.0")
        .Honoured("of LRRangeTest: see there"),
    Bool("scheduler.params.lr_range_test_staircase")
        .Default("false")
        .Honoured("of LRRangeTest: true: the rate changes only every lr_range_test_step_size steps"),

    Object("fp16").Honoured("see its keys"),
    Bool("fp16.enabled")
        .Default("false")
        .Honoured(
            "the parameters that trainers compute with, and gradients, are fp16; masters and sums are fp32"),
    Bool("fp16.auto_cast")
        .Default("false")
        .Unless("false")
        .Warned("no effect: inputs that are not fp16 are the program's to convert"),
    Number("fp16.loss_scale", 0).Default("0").Honoured("the loss scale; 0: dynamic"),
    Integer("fp16.initial_scale_power", 0, 126).Default("16").Honoured(kScale),
    Integer("fp16.loss_scale_window", 1, 2147483647).Default("1000").Honoured(kScale),
    Integer("fp16.hysteresis", 1, 2147483647).Default("2").Honoured(kScale),
    Bool("fp16.consecutive_hysteresis")
        .Default("false")
        .Unless("false")
        .Warned("hysteresis is refilled when the scale grows, as with false"),
    Number("fp16.min_loss_scale", 0).Above().Default("1").Honoured(kScale),
    Bool("fp16.fp16_master_weights_and_grads")
        .Default("false")
        .Unless("false")
        .Warned("masters are fp32, always: more exact, and 4 bytes an element instead of 2"),
    Object("bf16").Honoured("see its keys"),
    Bool("bf16.enabled")
        .Default("false")
        .Honoured(
            "the parameters that trainers compute with, and gradients, are bf16; masters and sums are fp32"),
    Bool("bf16.immediate_grad_update")
        .Default("false")
        .Unless("true|false")
        .Honoured("gradients leave as they are ready in stage 2"),
    Bool("bf16.check_grad_overflow")
        .Default("true")
        .Unless("true")
        .Warned("a gradient that is not finite is always found and its step skipped, for every dtype"),
    Bool("bf16.bf16_master_weights_and_grads")
        .Default("false")
        .Unless("false")
        .Warned("masters are fp32, always: more exact, and 4 bytes an element instead of 2"),
    Bool("bf16.bf16_optimizer_states").Default("false").Unless("false").Warned("the state is fp32, always"),
    Object("bfloat16").Honoured("the old name of bf16"),
    Bool("bfloat16.enabled").Default("false").Honoured("the old name of bf16.enabled"),
    Object("fp8").Honoured("see its keys"),
    Bool("fp8.enabled")
        .Default("false")
        .Unless("false")
        .Refused("fp8 is not there; set bf16.enabled instead"),
    Integer("fp8.loss_scale_window", 1).Default("1000"),
    Integer("fp8.hysteresis", 1).Default("2"),
    Number("fp8.min_loss_scale", 0).Default("1"),
    Free("amp").Refused(
        "Apex AMP is not there; write bf16 or fp16 {\"enabled\": true} instead (an amp object with enabled "
        "false passes)"),
    Object("torch_autocast").Honoured("see its keys"),
    Bool("torch_autocast.enabled")
        .Default("false")
        .Unless("false")
        .Refused("autocast is the program's own; write bf16 or fp16 {\"enabled\": true} instead"),
    Choice("torch_autocast.dtype", "bfloat16|bf16|float16|fp16|half|torch.bfloat16|torch.float16"),
    Texts("torch_autocast.lower_precision_safe_modules"),
    Choice("communication_data_type", "fp32|fp16|bf16")
        .Default("null")
        .Honoured("dtype in which gradients travel to the servers; null: that of the computation"),
    Choice("seq_parallel_communication_data_type", "fp32|fp16|bf16")
        .Default("fp32")
        .Warned("no effect: there is no sequence parallelism"),
    Object("data_types").Honoured("see its keys"),
    Choice("data_types.grad_accum_dtype", "fp32|fp16|bf16")
        .Default("null")
        .Unless("fp32")
        .Warned("gradients are accumulated in fp32 over micro-batches and ranks, always"),
    Choice("data_types.param_dtype", "fp32|fp16|bf16")
        .Default("null")
        .Warned("no effect: fp16.enabled and bf16.enabled say what is computed with"),
    Choice("data_types.buffer_dtype", "fp32|fp16|bf16")
        .Default("null")
        .Warned("no effect: buffers stay in the program's own dtype"),
};

}  // namespace

absl::Span<const KeySpec> TrainingKeys() { return kKeys; }

}  // namespace sherd::config
