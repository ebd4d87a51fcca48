//! The worker threads: one job at a time, split into tasks that the threads take in turn.
//!
//! A token passes a few hundred jobs, so workers spin briefly for the next one before they sleep,
//! and a job is handed over without allocation. The caller works as well and waits only for tasks
//! that others have begun: where the system gives a worker no core, the rest goes on without it.
//! Which thread runs a task never shows in a result: tasks write disjoint places and read only what
//! was finished before the job.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, Thread};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Polls before a waiting thread gives its time slice away, and before a worker sleeps.
const SPINS_BEFORE_YIELD: u32 = 2_000;
const SPINS_BEFORE_SLEEP: u32 = 2_200;

type Task<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// Threads that run jobs together with the caller.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    handles: Vec<Thread>,
}

struct Shared {
    /// `n_tasks << 32 | next`: the job's tasks and the first that nobody has taken.
    tasks: AtomicU64,
    /// Points at the caller's `&Task` while a job runs.
    job: AtomicPtr<()>,
    n_done: AtomicUsize,
    /// Workers with a smaller number take tasks; the caller is number 0.
    n_active: AtomicUsize,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn std::any::Any + Send>>>,
}

impl Pool {
    /// Starts `n_threads - 1` workers that run wherever the system puts them; the caller of
    /// [`Pool::run`] is the last one.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn new(n_threads: usize) -> std::io::Result<Pool> {
        Pool::start(n_threads, &[])
    }

    /// The same with each worker on a core of its own, as long as the process has that many: the
    /// first is left to the caller, which stays free and finds it empty.
    ///
    /// # Errors
    /// If the system refuses a thread or does not tell the cores.
    pub fn pinned(n_threads: usize) -> std::io::Result<Pool> {
        let allowed = sched_getaffinity(None)?;
        let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&c| allowed.is_set(c)).collect();
        Pool::start(n_threads, if n_threads <= cores.len() { &cores } else { &[] })
    }

    fn start(n_threads: usize, cores: &[usize]) -> std::io::Result<Pool> {
        let shared = Arc::new(Shared {
            tasks: AtomicU64::new(0),
            job: AtomicPtr::new(std::ptr::null_mut()),
            n_done: AtomicUsize::new(0),
            n_active: AtomicUsize::new(n_threads.max(1)),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let mut pool = Pool { shared, threads: Vec::new(), handles: Vec::new() };
        for worker_idx in 1..n_threads.max(1) {
            let shared = Arc::clone(&pool.shared);
            let core = cores.get(worker_idx).copied();
            let thread =
                std::thread::Builder::new().name(format!("cpu-{worker_idx}")).spawn(move || {
                    core.into_iter().for_each(stay_on);
                    shared.work(worker_idx);
                })?;
            pool.handles.push(thread.thread().clone());
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Threads that run a job, the caller included.
    pub fn n_threads(&self) -> usize {
        self.shared.n_active.load(Ordering::Relaxed)
    }

    /// Lets `n` of the threads run jobs from now on, the caller always. The others sleep.
    pub fn set_active(&mut self, n: usize) {
        let n = n.clamp(1, self.threads.len() + 1);
        self.shared.n_active.store(n, Ordering::Relaxed);
    }

    /// Calls `task(task_idx, worker_idx)` once for each index below `n_tasks` and returns when all
    /// are done.
    ///
    /// # Panics
    /// If a task panicked, on whichever thread.
    pub fn run(&mut self, n_tasks: usize, task: &Task<'_>) {
        let n_active = self.n_threads();
        if n_tasks <= 1 || n_active == 1 {
            (0..n_tasks).for_each(|i| task(i, 0));
            return;
        }
        let shared = &*self.shared;
        let n = u32::try_from(n_tasks).expect("a job has fewer tasks than a batch has values");
        let job: *const &Task<'_> = &task;
        shared.job.store(job as *mut (), Ordering::Relaxed);
        shared.n_done.store(0, Ordering::Relaxed);
        // Release: whoever takes a task sees the job.
        shared.tasks.store(u64::from(n) << 32, Ordering::Release);
        self.handles.iter().take(n_active - 1).for_each(Thread::unpark);
        while shared.take_task(0) {}
        let mut spins = 0u32;
        while shared.n_done.load(Ordering::Acquire) != n_tasks {
            spins = spins.saturating_add(1);
            if spins < SPINS_BEFORE_YIELD {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        let panic = shared.panic.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

/// Keeps the calling thread on one core. A core that was taken away meanwhile leaves it free, which
/// costs time and no result.
fn stay_on(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    let _ = sched_setaffinity(None, &set);
}

impl Shared {
    /// A worker's life.
    fn work(&self, worker_idx: usize) {
        let mut spins = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let is_active = worker_idx < self.n_active.load(Ordering::Relaxed);
            if is_active && self.take_task(worker_idx) {
                spins = 0;
                continue;
            }
            spins += 1;
            match spins {
                ..SPINS_BEFORE_YIELD => std::hint::spin_loop(),
                SPINS_BEFORE_YIELD..SPINS_BEFORE_SLEEP => std::thread::yield_now(),
                // A wake-up that came before is remembered by park, so none is lost.
                _ => std::thread::park(),
            }
        }
    }

    /// Takes a task and runs it; false if none is left. A panic is kept for the caller of `run`.
    fn take_task(&self, worker_idx: usize) -> bool {
        let mut tasks = self.tasks.load(Ordering::Relaxed);
        loop {
            if tasks as u32 >= (tasks >> 32) as u32 {
                return false;
            }
            let take = self.tasks.compare_exchange_weak(
                tasks,
                tasks + 1,
                Ordering::Acquire,
                Ordering::Relaxed,
            );
            match take {
                Ok(_) => break,
                Err(now) => tasks = now,
            }
        }
        let job = self.job.load(Ordering::Relaxed) as *const &Task<'_>;
        // SAFETY: `run` stored a pointer to a reference on its stack before it offered the tasks,
        // and does not return, nor store another, before the task taken above is done.
        let task = unsafe { *job };
        let task_idx = tasks as u32 as usize;
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| task(task_idx, worker_idx))) {
            *self.panic.lock().unwrap_or_else(|e| e.into_inner()) = Some(panic);
        }
        self.n_done.fetch_add(1, Ordering::Release);
        true
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_whatever_the_number_of_threads() {
        for n_threads in [1, 2, 5] {
            let mut pool = Pool::new(n_threads).expect("threads start");
            for n_tasks in [0, 1, 2, 97] {
                let counts: Vec<AtomicUsize> = (0..n_tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(n_tasks, &|i, worker| {
                    assert!(worker < n_threads);
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn fewer_threads_run_every_task_and_all_of_them_come_back() {
        let mut pool = Pool::new(4).expect("threads start");
        for (asked, n_active) in [(2, 2), (1, 1), (0, 1), (3, 3), (usize::MAX, 4)] {
            pool.set_active(asked);
            assert_eq!(pool.n_threads(), n_active);
            let counts: Vec<AtomicUsize> = (0..300).map(|_| AtomicUsize::new(0)).collect();
            pool.run(300, &|i, worker| {
                // One that was just told to sleep may take a last task.
                assert!(worker < 4);
                counts[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn pinned_workers_stay_on_cores_of_their_own() {
        let n_cores = std::thread::available_parallelism().map_or(1, usize::from).min(4);
        let mut pool = Pool::pinned(n_cores).expect("threads start");
        let cores: Vec<AtomicUsize> = (0..n_cores).map(|_| AtomicUsize::new(0)).collect();
        pool.run(200, &|_, worker| {
            let set = sched_getaffinity(None).expect("the system tells");
            let only = (0..CpuSet::MAX_CPU).find(|&c| set.is_set(c)).expect("a core");
            let n = if set.count() == 1 { only + 1 } else { usize::MAX };
            cores[worker].store(n, Ordering::Relaxed);
        });
        let seen: Vec<usize> = cores[1..].iter().map(|c| c.load(Ordering::Relaxed)).collect();
        let mut known: Vec<usize> = seen.iter().copied().filter(|&n| n != 0).collect();
        assert!(!known.contains(&usize::MAX), "a worker is free: {seen:?}");
        known.sort_unstable();
        known.dedup();
        assert_eq!(known.len(), seen.iter().filter(|&&n| n != 0).count(), "two share: {seen:?}");
        // More threads than cores are left to the system, and still do the work.
        let mut pool = Pool::pinned(CpuSet::MAX_CPU.min(n_cores + 3)).expect("threads start");
        let n_done = AtomicUsize::new(0);
        pool.run(50, &|_, _| {
            n_done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(n_done.into_inner(), 50);
    }

    #[test]
    fn workers_sleep_when_there_is_nothing_to_do() {
        let mut pool = Pool::new(3).expect("threads start");
        let met = std::sync::Barrier::new(3);
        let ids: Vec<AtomicUsize> = (0..3).map(|_| AtomicUsize::new(0)).collect();
        pool.run(3, &|_, worker| {
            let id = rustix::thread::gettid().as_raw_nonzero().get();
            ids[worker].store(id.unsigned_abs() as usize, Ordering::Relaxed);
            // Each task has a thread of its own.
            met.wait();
        });
        for id in &ids[1..] {
            let stat = format!("/proc/self/task/{}/stat", id.load(Ordering::Relaxed));
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
            loop {
                assert!(std::time::Instant::now() < deadline, "a worker polls for a minute");
                let stat = std::fs::read_to_string(&stat).expect("the thread lives");
                let (_, state) = stat.rsplit_once(") ").expect("a name in parentheses");
                if state.starts_with('S') {
                    break;
                }
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_the_pool_lives_on() {
        let mut pool = Pool::new(3).expect("threads start");
        let caught = catch_unwind(AssertUnwindSafe(|| {
            pool.run(10, &|i, _| assert!(i != 7, "task seven"));
        }));
        assert!(caught.is_err());
        let sum = AtomicUsize::new(0);
        pool.run(10, &|i, _| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 45);
    }
}
