//! Loading: how far it is, told piece by piece, and how little of the host's memory it takes beside
//! what it loads; on the CPU and on the stand-in for libcuda.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use jetforge::inference::gguf::{Gguf, GgufBuilder, ReadAhead};
use jetforge::inference::quant::TensorType;
use jetforge::inference::{LoadOptions, LoadProgress, Model};

use crate::cli::jetforge;
use crate::cuda_engine::{on_cpu, on_cuda, write};
use crate::memory::{OVERHEAD_KIB_MAX, plan, status_kib};
use crate::serve::Process;
use crate::support::recipe::Recipe;
use crate::support::skip::skip;
use crate::support::stand_in::{self, Directed};

/// What a load may take of the host's memory beyond an idle service's.
const BESIDE_KIB_MAX: u64 = 64 << 10;
const COPY: &str = "cuMemcpyHtoDAsync_v2";

/// How far a model was that somebody watched being loaded, each time that it was farther.
fn watched(load: impl FnOnce(&LoadProgress)) -> Vec<(u64, u64)> {
    let (progress, has_ended) = (LoadProgress::default(), AtomicBool::new(false));
    let mut seen = std::thread::scope(|scope| {
        let watch = || {
            let mut seen = vec![progress.read()];
            while !has_ended.load(Ordering::Relaxed) {
                let now = progress.read();
                if seen.last() != Some(&now) {
                    seen.push(now);
                }
                std::thread::yield_now();
            }
            seen
        };
        let watching = scope.spawn(watch);
        load(&progress);
        has_ended.store(true, Ordering::Relaxed);
        watching.join().expect("it watches")
    });
    seen.push(progress.read());
    seen
}

#[test]
fn progress_never_falls_and_ends_at_its_total() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = write(folder.path(), "llama", TensorType::Q4_0);
    let drafted = |options: LoadOptions| LoadOptions { draft: Some(source.clone()), ..options };
    let split = |library: &Path| LoadOptions { n_gpu_layers: Some(2), ..on_cuda(library) };
    let mut cases = vec![on_cpu(), drafted(on_cpu())];
    let stand_in = stand_in::copy("");
    if let Some((library, _dir)) = &stand_in {
        cases.extend([on_cuda(library), drafted(on_cuda(library)), drafted(split(library))]);
    }
    for options in cases {
        let mut packed_bytes = None;
        let seen = watched(|progress| {
            let model = Model::load_counted(&source, &options, progress);
            packed_bytes = model.ok().map(|model| model.memory_plan().packed_bytes);
        });
        let packed_bytes = packed_bytes.expect("it loads");
        assert!(seen.is_sorted(), "{options:?}: {seen:?}");
        let &(done_bytes, total_bytes) = seen.last().expect("it was looked at");
        assert_eq!(done_bytes, total_bytes, "{options:?}");
        let n_model = if options.draft.is_some() { 2 } else { 1 };
        match options.n_gpu_layers {
            None => assert_eq!(total_bytes, n_model * packed_bytes, "{options:?}"),
            Some(_) => assert!(total_bytes > packed_bytes, "the CPU's layers count as well"),
        }
    }
}

/// What a file has in the form that is computed with is mapped: nobody waits for it.
#[test]
fn a_model_of_floats_is_there_at_once_on_the_cpu() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = write(folder.path(), "llama", TensorType::F32);
    let progress = LoadProgress::default();
    Model::load_counted(&source, &on_cpu(), &progress).expect("it loads");
    assert_eq!((progress.read(), progress.fraction()), ((0, 0), None));
}

/// A copy that fails leaves behind what was copied before it, so that the pieces can be counted.
#[test]
fn what_a_gpu_has_is_told_piece_by_piece() {
    const N_PIECE: usize = 8;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = write(folder.path(), "llama", TensorType::Q4_0);
    // A real device takes no orders.
    let Some((library, _dir)) = stand_in::copy("log") else { return };
    let directed = Directed::of(&library);
    let load = || {
        let progress = LoadProgress::default();
        let model = Model::load_counted(&source, &on_cuda(&library), &progress);
        (model.is_ok(), progress.read())
    };
    let (is_loaded, (_, total_bytes)) = load();
    assert!(is_loaded && total_bytes > 0);
    directed.direct("log");
    assert!(load().0);
    let n_copy = stand_in::calls(&library).iter().filter(|(call, _)| call == COPY).count();
    assert!(n_copy > N_PIECE, "{n_copy} copies");
    let mut last = 0;
    for nth in n_copy - N_PIECE + 1..=n_copy {
        directed.direct(&format!("fail {COPY} {nth} 1"));
        let (is_loaded, (done_bytes, total)) = load();
        assert!(!is_loaded && total == total_bytes);
        assert!(last < done_bytes && done_bytes < total, "{last}, then {done_bytes} of {total}");
        last = done_bytes;
    }
}

/// A llama of one layer with so wide a feed-forward network: a header and a hole.
pub fn sparse(folder: &Path, matrices: TensorType, n_ff: u64) -> PathBuf {
    const N_EMBD: u64 = 1024;
    // The recipe's.
    const N_VOCAB: u64 = 384;
    let recipe = [("embedding_length", N_EMBD), ("feed_forward_length", n_ff), ("block_count", 1)]
        .into_iter()
        .chain([("attention.head_count", 16), ("attention.head_count_kv", 16)])
        .fold(Recipe::read("llama"), |recipe, (key, n)| recipe.with(&format!("llama.{key}"), n));
    let keys = recipe.keys().into_iter();
    let mut file = keys.fold(GgufBuilder::new(), |file, (key, value)| file.pair(key, value));
    let mut offset = 0;
    for (name, n_cols, n_rows) in [
        ("token_embd.weight", N_EMBD, N_VOCAB),
        ("output_norm.weight", N_EMBD, 1),
        ("output.weight", N_EMBD, N_VOCAB),
        ("blk.0.attn_norm.weight", N_EMBD, 1),
        ("blk.0.attn_q.weight", N_EMBD, N_EMBD),
        ("blk.0.attn_k.weight", N_EMBD, N_EMBD),
        ("blk.0.attn_v.weight", N_EMBD, N_EMBD),
        ("blk.0.attn_output.weight", N_EMBD, N_EMBD),
        ("blk.0.ffn_norm.weight", N_EMBD, 1),
        ("blk.0.ffn_gate.weight", N_EMBD, n_ff),
        ("blk.0.ffn_up.weight", N_EMBD, n_ff),
        ("blk.0.ffn_down.weight", n_ff, N_EMBD),
    ] {
        let (shape, ty) = match n_rows {
            1 => (vec![n_cols], TensorType::F32),
            _ => (vec![n_cols, n_rows], matrices),
        };
        let row_bytes = ty.row_bytes(n_cols as usize).expect("whole blocks") as u64;
        file = file.tensor(name, &shape, ty, Vec::new()).claim_offset(offset);
        offset += row_bytes * n_rows;
    }
    let (header, path) = (file.header(), folder.join(format!("{matrices}-{n_ff}.gguf")));
    let mut out = File::create(&path).expect("the file is made");
    out.write_all(&header).expect("the header is written");
    out.set_len(header.len() as u64 + offset).expect("the hole is made");
    path
}

/// A service that has little beside its model.
fn serve(home: &Path, model: &Path, device: &str) -> Command {
    let mut command = jetforge(home);
    command.args(["serve", "--port", "0", "--threads", "1", "-np", "1", "-c", "64", "-b", "8"]);
    command.args(["--device", device, "-m"]).arg(model);
    command
}

/// What a service has and had at most in memory when its model is there, without the model's
/// weights, in KiB.
fn beside_kib(model: &Path) -> Option<(u64, u64)> {
    let home = tempfile::tempdir().expect("a temporary folder");
    let service = Process::spawn(serve(home.path(), model, "cpu"));
    let weights_kib = weights_kib(model);
    let beside = |key| Some(status_kib(service.id(), key)?.saturating_sub(weights_kib));
    Some((beside("VmRSS")?, beside("VmHWM")?))
}

/// What the program says that the weights take.
fn weights_kib(model: &Path) -> u64 {
    plan(model, "8G", 64)["weights_bytes"].as_u64().expect("a size") >> 10
}

/// The kernel counts what is packed and the parts of the file that are mapped in one sum, and its
/// maximum is never missed. So what a load took beside the weights is that maximum without them:
/// the program itself, keys and values of 64 positions, and what of the file was in memory twice.
/// A matrix has more than may be: a load that gave pages back behind each would be found as well.
#[test]
fn a_load_to_the_cpu_takes_little_beside_the_weights() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let sparse = |n_ff| sparse(folder.path(), TensorType::Q8_0, n_ff);
    let (small, large) = (sparse(512), sparse(80 << 10));
    let (Some((idle, _)), Some((_, most))) = (beside_kib(&small), beside_kib(&large)) else {
        skip("loading", "this kernel does not tell VmHWM");
        return;
    };
    let weights_kib = weights_kib(&large);
    assert!(weights_kib > 3 * BESIDE_KIB_MAX, "{weights_kib} KiB of weights");
    println!("loading {} MiB: {most} KiB beside, {idle} KiB idle", weights_kib >> 10);
    assert!(most <= OVERHEAD_KIB_MAX, "{most} KiB");
    assert!(most <= idle + BESIDE_KIB_MAX, "{most} KiB, {idle} KiB idle");
}

/// What this thread made disks read, in bytes.
fn read_bytes() -> Option<u64> {
    let told = std::fs::read_to_string("/proc/thread-self/io").ok()?;
    told.lines().find_map(|line| line.strip_prefix("read_bytes: "))?.parse().ok()
}

/// What a GPU that shares the memory has got leaves the system's memory, and what is needed next is
/// asked for before anybody waits for it. On a disk: a file system in memory forgets nothing.
#[test]
fn a_file_is_forgotten_behind_and_read_ahead() {
    const TMPFS: rustix::fs::FsWord = 0x0102_1994;
    const N_BYTES: usize = 4 << 20;
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder");
    let is_in_memory = rustix::fs::statfs(dir.path()).is_ok_and(|of| of.f_type == TMPFS);
    let path = dir.path().join("model.gguf");
    let file = GgufBuilder::new().pair("general.architecture", "llama");
    let file = file.tensor("x", &[N_BYTES as u64 / 4], TensorType::F32, vec![1; N_BYTES]);
    std::fs::write(&path, file.build()).expect("the file is written");
    File::open(&path).and_then(|file| file.sync_all()).expect("it is on the disk");
    let gguf = Gguf::open(&path).expect("the reader takes the file");
    let info = gguf.tensor("x").expect("it has one");
    assert!(gguf.bytes(info).iter().all(|byte| *byte == 1), "all of it was in memory");
    gguf.forget(info, 0..N_BYTES);
    let before = read_bytes();
    gguf.read_ahead(info, 0..N_BYTES, &mut ReadAhead::default());
    let read = before.zip(read_bytes()).map(|(before, after)| after - before);
    match read {
        Some(read) if !is_in_memory => assert!(read > N_BYTES as u64 / 2, "{read} bytes were read"),
        _ => skip("loading", "no disk, or a kernel that does not tell read_bytes"),
    }
    assert!(gguf.bytes(info).iter().all(|byte| *byte == 1), "it comes from the file again");
}

/// What a service has and had at most in memory when its model is there, and the largest memory
/// that it asked its device for, in KiB.
fn taken_kib(model: &Path) -> Option<(Option<u64>, Option<u64>, u64)> {
    let home = tempfile::tempdir().expect("a temporary folder");
    let (library, _dir) = stand_in::copy("log")?;
    let mut command = serve(home.path(), model, "cuda");
    command.env("LD_LIBRARY_PATH", library.parent().expect("a folder"));
    let service = Process::spawn(command);
    let status = |key| status_kib(service.id(), key);
    let (now, most) = (status("VmRSS"), status("VmHWM"));
    let calls = stand_in::calls(&library).into_iter();
    let sizes = calls.filter(|(call, _)| call == "cuMemAlloc_v2");
    let sizes = sizes.filter_map(|(_, n_bytes)| n_bytes.parse::<u64>().ok());
    Some((now, most, sizes.max()? >> 10))
}

/// The stand-in's device memory is the process's, and is all there from when it is asked for. So
/// what a load took of the host is the most that the process ever had without its weights, which
/// are one allocation; mapped parts of the file count. A service that has next to no weights tells
/// what an idle one takes.
#[test]
fn a_load_to_a_gpu_takes_little_of_the_host_beside() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let sparse = |n_ff| sparse(folder.path(), TensorType::F16, n_ff);
    let Some((idle, _, idle_arena)) = taken_kib(&sparse(512)) else { return };
    let (_, most, arena) = taken_kib(&sparse(32 << 10)).expect("as before");
    let (Some(idle), Some(most)) = (idle, most) else {
        skip("loading", "this kernel does not tell VmHWM");
        return;
    };
    // One matrix has as much as may be taken, and there are three.
    assert!(arena - idle_arena > 2 * BESIDE_KIB_MAX, "{idle_arena} and {arena} KiB of weights");
    let (idle, most) = (idle - idle_arena, most - arena);
    println!("loading {} MiB: {most} KiB of the host, {idle} KiB idle", arena >> 10);
    assert!(most <= idle + BESIDE_KIB_MAX, "{most} KiB, {idle} KiB idle");
}
