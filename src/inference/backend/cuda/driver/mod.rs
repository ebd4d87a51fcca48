//! A thin safe layer on the driver: a device with its context and stream, memory, modules, events.
//!
//! ```text
//! Device     a context of our own, which those who open the same device share, and one stream;
//!            every call makes the context current first
//!   Memory   an allocation, freed when its last [`Buffer`] is gone
//!   Module   PTX, compiled by the driver; its kernels, each checked against the device's registers
//!   Graph    launches that are recorded once and started together
//!   Event    a point of the stream, for times
//! ```
//!
//! Everything is ordered by the one stream; reads and writes wait for their end, because they copy
//! from and to ordinary memory. A launch is `unsafe`: only launchers know what a kernel's arguments
//! must be.

mod event;
mod graph;
mod memory;
mod module;

use std::ffi::{c_int, c_uint};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::CudaError;
use super::images::Images;
use super::symbols::{Handle, SUCCESS, Symbols};
use crate::base::limits::{DEVICE_LAUNCH_PRODUCTS_MAX, DEVICE_LAUNCH_PRODUCTS_MIN};
pub use event::Event;
pub use graph::Graph;
pub use memory::Buffer;
pub use module::{Args, Kernel, Module};

/// Where a Linux driver is found.
pub const LIBRARY: &str = "libcuda.so.1";

/// The host sleeps while it waits: a board has better uses for its power.
const BLOCKING_SYNC: c_uint = 4;
/// Attribute numbers of `cuda.h`.
const REGISTERS_PER_BLOCK: c_int = 12;
const INTEGRATED: c_int = 18;
const MEMORY_CLOCK_KHZ: c_int = 36;
const MEMORY_BUS_BITS: c_int = 37;
const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;
const FUNCTION_THREADS_MAX: c_int = 0;
const FUNCTION_REGISTERS: c_int = 4;

/// The oldest devices that the kernels are for: halves are computed with from there on.
const CAPABILITY_MIN: (u32, u32) = (5, 3);

/// No memory of a device that computes has a slower clock. A board's driver may tell that of a
/// controller at rest.
const MEMORY_CLOCK_MIN_KHZ: u32 = 100_000;

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The driver's name of it.
    pub name: String,
    /// Compute capability.
    pub capability: (u32, u32),
    /// CUDA version of the driver, times 1000.
    pub driver_version: u32,
    /// Memory of the device, or of the whole board.
    pub total_bytes: usize,
    /// Registers that the threads of a block may have together.
    pub registers_per_block: u32,
    /// Whether it has no memory of its own, but the board's.
    pub is_integrated: bool,
    /// Bytes that its memory can give in a second, if the driver tells a clock that can be one.
    pub memory_peak_bytes_s: Option<u64>,
}

/// Bytes a second by the memory's clock and wires: each passes two bits in a turn.
fn memory_peak_bytes_s(clock_khz: u32, bus_bits: u32) -> Option<u64> {
    let is_told = clock_khz >= MEMORY_CLOCK_MIN_KHZ && bus_bits > 0;
    is_told.then(|| 2 * u64::from(clock_khz) * 1000 * u64::from(bus_bits) / 8)
}

impl DeviceInfo {
    /// Whether kernels for compute capability 5.3 run on it.
    ///
    /// # Errors
    /// [`CudaError::Capability`].
    pub fn check(&self) -> Result<(), CudaError> {
        match self.capability >= CAPABILITY_MIN {
            true => Ok(()),
            false => {
                let (name, capability) = (self.name.clone(), self.capability);
                Err(CudaError::Capability { name, capability, needed: CAPABILITY_MIN })
            }
        }
    }
}

impl std::fmt::Display for DeviceInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ((major, minor), version) = (self.capability, self.driver_version);
        let driver = (version / 1000, version % 1000 / 10);
        write!(f, "{}, compute {major}.{minor}, CUDA {}.{}", self.name, driver.0, driver.1)
    }
}

struct Context {
    symbols: Symbols,
    handle: Handle,
    /// Bytes that were copied to the host.
    n_read: AtomicU64,
}

// SAFETY: handles are names that the driver looks up; it is safe to call from any thread with the
// context made current there, and every call does that first.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Makes it current on this thread.
    fn bind(&self) -> Result<(), CudaError> {
        // SAFETY: the context lives as long as `self`.
        let code = unsafe { (self.symbols.cuCtxSetCurrent)(self.handle) };
        check(&self.symbols, "cuCtxSetCurrent", code)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: nothing else has the handle any more. What the driver answers changes nothing.
        unsafe {
            (self.symbols.cuCtxSetCurrent)(self.handle);
            (self.symbols.cuCtxDestroy_v2)(self.handle);
        }
    }
}

/// A context, and a stream of it.
struct Shared {
    context: Arc<Context>,
    stream: Handle,
    /// Multiply-adds of a launch, at most.
    launch_products_max: AtomicUsize,
    /// Launches that the driver took.
    n_launch: AtomicU64,
}

// SAFETY: as for `Context`.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// A stream of its own in a context that is current.
    fn new(context: Arc<Context>) -> Result<Shared, CudaError> {
        let mut shared = Shared {
            context,
            stream: std::ptr::null_mut(),
            launch_products_max: AtomicUsize::new(DEVICE_LAUNCH_PRODUCTS_MAX),
            n_launch: AtomicU64::new(0),
        };
        // SAFETY: the driver writes one handle; the context is current.
        let code = unsafe { (shared.context.symbols.cuStreamCreate)(&raw mut shared.stream, 0) };
        shared.check("cuStreamCreate", code)?;
        Ok(shared)
    }

    fn check(&self, call: &'static str, code: c_int) -> Result<(), CudaError> {
        check(&self.context.symbols, call, code)
    }

    /// Makes the context current on this thread.
    fn bind(&self) -> Result<(), CudaError> {
        self.context.bind()
    }

    fn wait(&self) -> Result<(), CudaError> {
        // SAFETY: the stream lives as long as `self`.
        let code = unsafe { (self.context.symbols.cuStreamSynchronize)(self.stream) };
        self.check("cuStreamSynchronize", code)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if !self.stream.is_null() && self.bind().is_ok() {
            // SAFETY: nothing else has the handle any more.
            unsafe { (self.context.symbols.cuStreamDestroy_v2)(self.stream) };
        }
    }
}

fn check(symbols: &Symbols, call: &'static str, code: c_int) -> Result<(), CudaError> {
    match code {
        SUCCESS => Ok(()),
        _ => Err(CudaError::Driver { call, code, name: symbols.error_name(code) }),
    }
}

/// A device that somebody in this process has open.
type Opened = (PathBuf, u32, Weak<Context>, DeviceInfo);

/// A context takes memory of the device and time to make, so models share one.
static OPENED: Mutex<Vec<Opened>> = Mutex::new(Vec::new());

/// A device, ready to be used.
#[derive(Clone)]
pub struct Device {
    shared: Arc<Shared>,
    info: DeviceInfo,
    images: Option<Arc<Images>>,
}

impl Device {
    /// Opens device `ordinal` of the driver library at `path`.
    ///
    /// # Errors
    /// If there is no such library, symbol or device, or the driver refuses.
    pub fn open(path: &Path, ordinal: u32) -> Result<Device, CudaError> {
        let symbols = Symbols::open(path)?;
        // SAFETY: no preconditions.
        check(&symbols, "cuInit", unsafe { (symbols.cuInit)(0) })?;
        let mut n_device = 0;
        // SAFETY: the driver writes one integer.
        let code = unsafe { (symbols.cuDeviceGetCount)(&raw mut n_device) };
        check(&symbols, "cuDeviceGetCount", code)?;
        let n_device = u32::try_from(n_device).unwrap_or(0);
        let number = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
        if ordinal >= n_device {
            return Err(CudaError::NoDevice { ordinal, n_device });
        }
        let mut device = 0;
        // SAFETY: the driver writes one integer.
        let code = unsafe { (symbols.cuDeviceGet)(&raw mut device, number) };
        check(&symbols, "cuDeviceGet", code)?;
        let info = describe(&symbols, device)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the driver writes one handle.
        let code = unsafe { (symbols.cuCtxCreate_v2)(&raw mut handle, BLOCKING_SYNC, device) };
        check(&symbols, "cuCtxCreate_v2", code)?;
        let shared = Shared::new(Arc::new(Context { symbols, handle, n_read: AtomicU64::new(0) }))?;
        Ok(Device { shared: Arc::new(shared), info, images: None })
    }

    /// The same device, which keeps what it compiles in `dir`.
    #[must_use]
    pub fn with_images(self, dir: &Path) -> Device {
        Device { images: Some(Arc::new(Images::new(dir))), ..self }
    }

    /// The device that is open already with a stream of its own, or opens it.
    ///
    /// # Errors
    /// As [`Device::open`].
    pub fn shared(path: &Path, ordinal: u32) -> Result<Device, CudaError> {
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        opened.retain(|(_, _, context, _)| context.strong_count() > 0);
        let same = opened.iter().find(|(p, o, _, _)| p == path && *o == ordinal);
        if let Some((context, info)) = same.and_then(|(_, _, c, info)| Some((c.upgrade()?, info))) {
            context.bind()?;
            let shared = Arc::new(Shared::new(context)?);
            return Ok(Device { shared, info: info.clone(), images: None });
        }
        let device = Device::open(path, ordinal)?;
        let context = Arc::downgrade(&device.shared.context);
        opened.push((path.to_owned(), ordinal, context, device.info.clone()));
        Ok(device)
    }

    /// What it is.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Free and total bytes, as the driver counts them: on a board, page cache that could be given
    /// back is not free to it.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn memory(&self) -> Result<(usize, usize), CudaError> {
        self.shared.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the driver writes two integers.
        let code =
            unsafe { (self.shared.context.symbols.cuMemGetInfo_v2)(&raw mut free, &raw mut total) };
        self.shared.check("cuMemGetInfo_v2", code)?;
        Ok((free, total))
    }

    /// Bytes that have come from the device since it was opened, for all who share it.
    pub fn n_bytes_read(&self) -> u64 {
        self.shared.context.n_read.load(Ordering::Relaxed)
    }

    /// Multiply-adds of a launch, at most, where there is a choice.
    pub fn launch_products_max(&self) -> usize {
        self.shared.launch_products_max.load(Ordering::Relaxed)
    }

    /// The same device with other such bounds, for all who share its stream.
    #[must_use]
    pub fn with_launch_products(self, n_max: usize) -> Device {
        self.shared.launch_products_max.store(n_max, Ordering::Relaxed);
        self
    }

    /// Makes later launches half as large, but for [`DEVICE_LAUNCH_PRODUCTS_MIN`].
    pub fn shorten_launches(&self) {
        let n_max = self.launch_products_max();
        let n_half = (n_max / 2).max(DEVICE_LAUNCH_PRODUCTS_MIN).min(n_max);
        self.shared.launch_products_max.store(n_half, Ordering::Relaxed);
    }

    /// Launches on its stream so far, also those that were recorded.
    pub fn n_launch(&self) -> u64 {
        self.shared.n_launch.load(Ordering::Relaxed)
    }

    /// Waits until everything that was asked for is done.
    ///
    /// # Errors
    /// What went wrong since the last time: launches fail here.
    pub fn wait(&self) -> Result<(), CudaError> {
        self.shared.bind()?;
        self.shared.wait()
    }
}

fn describe(symbols: &Symbols, device: c_int) -> Result<DeviceInfo, CudaError> {
    let attribute = |which| {
        let mut value = 0;
        // SAFETY: the driver writes one integer.
        let code = unsafe { (symbols.cuDeviceGetAttribute)(&raw mut value, which, device) };
        check(symbols, "cuDeviceGetAttribute", code)?;
        Ok::<_, CudaError>(u32::try_from(value).unwrap_or(0))
    };
    let mut name = [0u8; 128];
    let room = name.len() as c_int - 1;
    // SAFETY: the driver writes at most so many bytes; the last stays zero.
    let code = unsafe { (symbols.cuDeviceGetName)(name.as_mut_ptr().cast(), room, device) };
    check(symbols, "cuDeviceGetName", code)?;
    let mut total_bytes = 0;
    // SAFETY: the driver writes one integer.
    let code = unsafe { (symbols.cuDeviceTotalMem_v2)(&raw mut total_bytes, device) };
    check(symbols, "cuDeviceTotalMem_v2", code)?;
    let mut version = 0;
    // SAFETY: the driver writes one integer.
    check(symbols, "cuDriverGetVersion", unsafe {
        (symbols.cuDriverGetVersion)(&raw mut version)
    })?;
    let end = name.iter().position(|&b| b == 0).unwrap_or(0);
    // Only reports need these: a driver that refuses them computes as well as any.
    let told = |which| attribute(which).unwrap_or(0);
    Ok(DeviceInfo {
        name: String::from_utf8_lossy(&name[..end]).into_owned(),
        capability: (attribute(CAPABILITY_MAJOR)?, attribute(CAPABILITY_MINOR)?),
        driver_version: u32::try_from(version).unwrap_or(0),
        total_bytes,
        registers_per_block: attribute(REGISTERS_PER_BLOCK)?,
        is_integrated: attribute(INTEGRATED)? != 0,
        memory_peak_bytes_s: memory_peak_bytes_s(told(MEMORY_CLOCK_KHZ), told(MEMORY_BUS_BITS)),
    })
}
