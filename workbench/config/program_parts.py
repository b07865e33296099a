"""The texts of which ``python_code`` makes a program, in the order in which it reads.

``<optimizer.learning_rate>`` stands for the value of that key, ``<=training.device>`` for nothing:
the line only follows from the key. Both leave key and origin as a comment. Words in capitals are
replaced by code. Invariant: where a value may be long, its call is broken after each argument with
a comma behind the last, which formatters keep at any width.
"""

MODULES = {
    "shipped_configs": "workbench.config.find",
    "Config": "workbench.config.schema.config",
    "DataSection": "workbench.config.schema.data",
    "EvaluationSection": "workbench.config.schema.intervals",
    "SourceSection": "workbench.config.schema.data",
    "template_source": "workbench.config.template_source",
    "Loader": "workbench.data.loader",
    "prepare": "workbench.data.prepare",
    "parameter_shapes": "workbench.model.decoder",
    "read_dimensions": "workbench.model.families",
    "prune": "workbench.runs.checkpoints",
    "resume_point": "workbench.runs.checkpoints",
    "RunFolder": "workbench.runs.layout",
    "take_lock": "workbench.runs.lock",
    "checkpoint": "workbench.training",
    "files_beside_weights": "workbench.training.beside_weights",
    "prepare_torch": "workbench.training.device",
    "Ranks": "workbench.training.distributed",
    "assemble": "workbench.training.engine.assemble",
    "rates_here": "workbench.training.engine.calibration",
    "available_host_memory": "workbench.runs.host_memory",
    "choose_plan": "workbench.training.engine.plan",
    "facts_of_dimensions": "workbench.training.engine.plan",
    "take_budget": "workbench.training.engine.plan",
    "evaluate_batches": "workbench.training.evaluate",
    "total": "workbench.training.evaluate",
    "draw_first_weights": "workbench.training.first_weights",
    "load_first_weights": "workbench.training.first_weights",
    "new_optimizer": "workbench.training.optimizer.choice",
    "learning_rate": "workbench.training.optimizer.learning_rate",
    "Report": "workbench.training.report",
    "next_attempt": "workbench.training.report",
    "TrainingState": "workbench.training.state",
    "total_steps": "workbench.training.state",
    "Utilization": "workbench.training.utilization",
    "peak_flops_of": "workbench.training.utilization",
}
"""Every name of ours in the texts below, and the module that has it."""

HEAD = '''\
"""Train the config {name}.

{description}

{what}

    python run.py [--max-steps N] [--output-dir DIR]

The folder then holds metrics.jsonl, TensorBoard files and checkpoints, as any run's does.
Called again, it goes on from the newest checkpoint. A rank has OMP_WAIT_POLICY=passive and
PYTORCH_ALLOC_CONF=expandable_segments:True in its environment: set them here, too.
"""
'''

SHOWN = '''\
def shown(number: float | None) -> str:
    """Write a number that is None where it was not finite."""
    return "not finite" if number is None else f"{number:.4f}"
'''

MAIN = '''\
def main() -> None:
    """Train to the last step, from the newest checkpoint of the folder if there is one."""
'''

FOLDER = """\
    # ---- where the run goes: a folder of its own, which one process at a time may use
    parser = argparse.ArgumentParser()
    parser.add_argument("--max-steps", type=int, default=<training.max_steps>)
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=DEFAULT
    )
    arguments = parser.parse_args()
    run = RunFolder(arguments.output_dir)
    run.path.mkdir(parents=True, exist_ok=True)
    lock = take_lock(run.lock)
    if lock is None:
        parser.error(f"a job is running in {run.path}")
"""

MACHINE = """\
    # ---- the machine: one device, one precision for weights and activations, one seed from
    # which everything random follows, and this process as the only rank
    device = torch.device(DEVICE)<=training.device>
    dtype = torch.DTYPE<=model.dtype>
    seed = <training.seed>
    prepare_torch(
        seed,
        matmul_precision=<training.matmul_precision>,
        deterministic=<training.deterministic>,
    )
    ranks = Ranks()
"""

MODEL = """\
    # ---- the model's folder: its config.json gives layers and widths; its tokenizer and the
    # template turn conversations into tokens
    # <=model.path>
"""

TEMPLATE = """\
    dims = read_dimensions(model_folder)
    template = template_source(
        <data.chat_template>,
        model_folder,
    )
"""

DATA = """\
    # ---- the data: conversations become tokens, of which some are targets, and those become
    # rows; whatever is odd is told, and what would train wrongly is refused
    data = DataSection(
        sources={
"""

PREPARE = """\
    )
    config = CONFIG
    prepared = prepare(config, model_folder, template)
    for finding in prepared.findings.shown():
        print(f"{finding.severity}: {finding.where}: {finding.what}")
"""

PLAN = """\
    # ---- the plan: what stays on the GPU and what waits in host memory, what backward
    # computes again, and in how many microbatches the rows of a step pass the model, so
    # that it fits; none of it changes a loss beyond rounding
    longest = LENGTH
    host = available_host_memory()
    plan = choose_plan(
        dims,
        dtype=dtype,
        rows=<batch.train>,
        row_length=longest,
        microbatches=<batch.microbatches>,
        sum_dtype=<memory.sum_dtype>,
        budget_bytes=take_budget(device, <memory.budget_gib>),
        resident_fraction=<memory.resident_fraction>,
        block_inputs=<memory.block_inputs>,
        recompute=<memory.recompute>,
        optimizer=<optimizer.name>,
        exact=EXACT,<=optimizer.rounding>
        host_bytes=None if host is None else host.available_bytes,
        rates=rates_here(device),
        seen_tokens=prepared.train.seen_tokens,
    )
    microbatch_rows = -(-<batch.train> // plan.microbatches)
"""

ROWS = """\
    # ---- which rows a step takes: a function of seed and step, so there is nothing to
    # remember between steps, and a resumed run meets the rows it would have met
    rows = Loader(
        prepared.train,
        rows_per_step=<batch.train>,
        num_microbatches=plan.microbatches,
        shuffle=<data.shuffle>,
        seed=seed,
        pad_id=prepared.pad_id,
        row_length=LENGTH
    )
    max_steps = total_steps(
        epochs=<training.epochs>,
        steps_per_epoch=rows.steps_per_epoch,
        max_steps=arguments.max_steps,
    )
"""

VALIDATION = """\
    validation = None
    if len(prepared.validation):
        validation = Loader(
            prepared.validation,
            rows_per_step=<batch.evaluation>,
            num_microbatches=-(-<batch.evaluation> // microbatch_rows),
            shuffle=False,
            seed=seed,
            pad_id=prepared.pad_id,
            row_length=LENGTH
        )
"""

ENGINE = """\
    # ---- the rule by which weights move, and what it remembers of each; the fp32 result of
    # an update is rounded once, at its end
    optimizer = new_optimizer(
        <optimizer.name>,
        parameter_shapes(dims),
        dtype=dtype,
        device=device,
        seed=seed,
        weight_decay=<optimizer.weight_decay>,
        rounding=<optimizer.rounding>,
    )
    # The engine takes a step block by block: all microbatches pass a block before the next,
    # forward keeps a record of each, and backward sums a block's gradients over them, moves
    # its weights and goes on to the block below. Weights that are not resident come and go.
    engine = assemble(
        plan,
        dims,
        optimizer,
        microbatch_tokens=microbatch_rows * longest,
        dtype=dtype,
        device=device,
        attention=<model.attention>,
        clip_norm=CLIP_NORM,<=optimizer.clip_by>
        compiled=<model.compile>,
    )
    weights = dict(engine.store.named_tensors())
"""

CHECKPOINTS = """\
    # ---- what a checkpoint holds: a whole Hugging Face folder, and what a resume needs
    content = checkpoint.Content(
        weights=weights,
        statistics=optimizer.named_tensors(),
        companions=dict(engine.store.named_companions()),
        common=files_beside_weights(
            model_folder,
            template=template,
            dtype=<model.dtype>,
            stop_ids=prepared.stop_ids,
            pad_id=prepared.pad_id,
        ),
        device=device,
    )
"""

BEGIN = """\
    # ---- where it begins: at step 0, or with everything as it was at a checkpoint
    resumed = resume_point(
        run,
        <checkpoints.resume>,
        is_restart=False,
    )
    if resumed is None:
        FIRST_WEIGHTS<=model.weights>
        state = TrainingState()
    else:
        saved = checkpoint.load(resumed, content, dims, rows.steps_per_epoch, ranks)
        engine.restore_previous_norm(saved.previous_gradient_norm)
        state = TrainingState.from_saved(saved)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    report = Report(
        run,
        ranks,
        attempt=next_attempt(run),
        device=device,
        resumed_step=state.step,
        name=<logging.name>,
        utilization=Utilization(facts_of_dimensions(dims), peak_flops_of(gpu)),
    )
    print(f"{len(prepared.train)} rows, step {state.step} of {max_steps} on {device}")
"""

STEP = """\
    # ---- the loop: one turn is one optimizer step, in which each weight moves once
    for number in range(state.step + 1, max_steps + 1):
        begin = time.perf_counter()
        step_rows = rows.step(number - 1)
        rate = learning_rate(
            number,
            peak=<optimizer.learning_rate>,
            warmup_steps=<optimizer.warmup_steps>,
            cooldown_steps=<optimizer.cooldown_steps>,
            max_steps=max_steps,
        )
        result = engine.step(step_rows, number, rate)
        state.step = number
        state.tokens += step_rows.num_tokens
        state.target_tokens += step_rows.num_targets
        state.epoch = step_rows.epoch
        report.add(number, result, time.perf_counter() - begin)
        faults = report.faults(wait=True)  # steps whose loss or gradient was not finite
"""

LOG_EACH = """\
        _, record = report.window(state, rate)  # a line of metrics.jsonl<=logging.every_steps>
        print(
            f"step {number}/{max_steps} loss {shown(record.loss)} lr {rate:.3g} "
            f"gnorm {shown(record.gradient_norm)} {record.tokens_per_second:.0f} tok/s",
            flush=True,
        )
"""

LOG = """\
        # A record is the mean over the target tokens of its steps: a line of metrics.jsonl.
        if number % <logging.every_steps> == 0 or number == max_stepsFAULTS:
            _, record = report.window(state, rate)
            print(
                f"step {number}/{max_steps} loss {shown(record.loss)} lr {rate:.3g} "
                f"gnorm {shown(record.gradient_norm)} {record.tokens_per_second:.0f} tok/s",
                flush=True,
            )
"""

STOP = """\
        if faults:<=training.nonfinite>
            report.close()
            parser.exit(1, f"{faults[0].what} of step {number} is not finite\\n")
"""

SKIP = """\
        for fault in faults:<=training.nonfinite>
            print(f"{fault.what} of step {number} is not finite; {fault.skipped}")
"""

EVALUATE = """\
        # The loss over the validation rows: per target token, not a mean of means.
        evaluation = None
        if validation is not None and number % <evaluation.every_steps> == 0:
            batches = evaluate_batches(
                engine,
                validation,
                max_batches=<evaluation.max_batches>,
            )
            evaluation = total(batches)
            report.evaluation(number, evaluation)
            print(f"step {number} evaluated: loss {shown(evaluation.loss)}", flush=True)
"""

SAVE = """\
        # Written beside, renamed when it is complete: there is never half a checkpoint.
        if number % INTERVAL == 0 or number == max_steps:<=checkpoints.save_strategy>
            saved = state.to_saved(
                steps_per_epoch=rows.steps_per_epoch,
                previous_norm=engine.previous_norm,
            )
            engine.store.settle()  # what was on its way to host memory is there
            path = checkpoint.save(run, content, saved, ranks).path
            print(f"step {number} saved: {path}", flush=True)
"""

BEST = """\
            if evaluation is not None and evaluation.loss is not None:
                checkpoint.note_evaluation(run, number, evaluation.loss)
"""

PRUNE = """\
            prune(run, keep=<checkpoints.keep>)
"""

END = """\
    report.close()
    lock.release()


if __name__ == "__main__":
    main()
"""
