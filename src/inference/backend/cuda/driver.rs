//! A thin safe layer on the driver: a device with its context and stream, memory, modules, events.
//!
//! ```text
//! Device     a context of our own and one stream; every call makes the context current first
//!   Memory   an allocation, freed when its last [`Buffer`] is gone
//!   Module   PTX, compiled by the driver; its kernels, each checked against the device's registers
//!   Event    a point of the stream, for times
//! ```
//!
//! Everything is ordered by the one stream; reads and writes wait for their end, because they copy
//! from and to ordinary memory. A launch is `unsafe`: only launchers know what a kernel's arguments
//! must be.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::sync::Arc;

use super::CudaError;
use super::symbols::{DeviceAddress, Handle, SUCCESS, Symbols};

/// Where a Linux driver is found.
pub const LIBRARY: &str = "libcuda.so.1";

/// The host sleeps while it waits: a board has better uses for its power.
const BLOCKING_SYNC: c_uint = 4;
/// Attribute numbers of `cuda.h`.
const REGISTERS_PER_BLOCK: c_int = 12;
const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;
const FUNCTION_THREADS_MAX: c_int = 0;
const FUNCTION_REGISTERS: c_int = 4;

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
}

struct Shared {
    symbols: Symbols,
    context: Handle,
    stream: Handle,
}

// SAFETY: handles are names that the driver looks up; it is safe to call from any thread with the
// context made current there, and every call does that first.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    fn check(&self, call: &'static str, code: c_int) -> Result<(), CudaError> {
        check(&self.symbols, call, code)
    }

    /// Makes the context current on this thread.
    fn bind(&self) -> Result<(), CudaError> {
        // SAFETY: the context lives as long as `self`.
        self.check("cuCtxSetCurrent", unsafe { (self.symbols.cuCtxSetCurrent)(self.context) })
    }

    fn wait(&self) -> Result<(), CudaError> {
        // SAFETY: the stream lives as long as `self`.
        let code = unsafe { (self.symbols.cuStreamSynchronize)(self.stream) };
        self.check("cuStreamSynchronize", code)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: nothing else has the handles any more. What the driver answers changes nothing.
        unsafe {
            (self.symbols.cuCtxSetCurrent)(self.context);
            if !self.stream.is_null() {
                (self.symbols.cuStreamDestroy_v2)(self.stream);
            }
            (self.symbols.cuCtxDestroy_v2)(self.context);
        }
    }
}

fn check(symbols: &Symbols, call: &'static str, code: c_int) -> Result<(), CudaError> {
    match code {
        SUCCESS => Ok(()),
        _ => Err(CudaError::Driver { call, code, name: symbols.error_name(code) }),
    }
}

/// A device, ready to be used.
#[derive(Clone)]
pub struct Device {
    shared: Arc<Shared>,
    info: DeviceInfo,
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
        let mut context = std::ptr::null_mut();
        // SAFETY: the driver writes one handle.
        let code = unsafe { (symbols.cuCtxCreate_v2)(&raw mut context, BLOCKING_SYNC, device) };
        check(&symbols, "cuCtxCreate_v2", code)?;
        let mut shared = Shared { symbols, context, stream: std::ptr::null_mut() };
        // SAFETY: the driver writes one handle; the new context is current.
        let code = unsafe { (shared.symbols.cuStreamCreate)(&raw mut shared.stream, 0) };
        shared.check("cuStreamCreate", code)?;
        Ok(Device { shared: Arc::new(shared), info })
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
        let code = unsafe { (self.shared.symbols.cuMemGetInfo_v2)(&raw mut free, &raw mut total) };
        self.shared.check("cuMemGetInfo_v2", code)?;
        Ok((free, total))
    }

    /// Memory of the device, at least one byte; what it holds is undefined.
    ///
    /// # Errors
    /// [`CudaError::Memory`] if there is not enough.
    pub fn allocate(&self, what: &'static str, n_bytes: usize) -> Result<Buffer, CudaError> {
        self.shared.bind()?;
        let mut address = 0;
        let n = n_bytes.max(1);
        // SAFETY: the driver writes one address.
        match unsafe { (self.shared.symbols.cuMemAlloc_v2)(&raw mut address, n) } {
            SUCCESS => {}
            code => {
                let name = self.shared.symbols.error_name(code);
                return Err(CudaError::Memory { what, n_bytes, code, name });
            }
        }
        let memory = Arc::new(Memory { shared: self.shared.clone(), address });
        Ok(Buffer { memory, start: 0, n_bytes })
    }

    /// Waits until everything that was asked for is done.
    ///
    /// # Errors
    /// What went wrong since the last time: launches fail here.
    pub fn wait(&self) -> Result<(), CudaError> {
        self.shared.bind()?;
        self.shared.wait()
    }

    /// Compiles PTX.
    ///
    /// # Errors
    /// If the driver refuses it, with what it says.
    pub fn load(&self, name: &'static str, ptx: &str) -> Result<Module, CudaError> {
        self.shared.bind()?;
        let image = CString::new(ptx).map_err(|_| CudaError::Ptx { name })?;
        let mut handle = std::ptr::null_mut();
        let nothing: *mut c_int = std::ptr::null_mut();
        // SAFETY: the image ends in a zero byte; there are no options.
        let code = unsafe {
            (self.shared.symbols.cuModuleLoadDataEx)(
                &raw mut handle,
                image.as_ptr().cast(),
                0,
                nothing,
                nothing.cast(),
            )
        };
        self.shared.check("cuModuleLoadDataEx", code)?;
        let registers_per_block = self.info.registers_per_block;
        let loaded = Loaded { shared: self.shared.clone(), handle, registers_per_block };
        Ok(Module { loaded: Arc::new(loaded) })
    }

    /// Marks this point of the stream.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn event(&self) -> Result<Event, CudaError> {
        self.shared.bind()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the driver writes one handle.
        let code = unsafe { (self.shared.symbols.cuEventCreate)(&raw mut handle, 0) };
        self.shared.check("cuEventCreate", code)?;
        let event = Event { shared: self.shared.clone(), handle };
        // SAFETY: both handles are alive.
        let code = unsafe { (self.shared.symbols.cuEventRecord)(handle, self.shared.stream) };
        self.shared.check("cuEventRecord", code)?;
        Ok(event)
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
    Ok(DeviceInfo {
        name: String::from_utf8_lossy(&name[..end]).into_owned(),
        capability: (attribute(CAPABILITY_MAJOR)?, attribute(CAPABILITY_MINOR)?),
        driver_version: u32::try_from(version).unwrap_or(0),
        total_bytes,
        registers_per_block: attribute(REGISTERS_PER_BLOCK)?,
    })
}

struct Memory {
    shared: Arc<Shared>,
    address: DeviceAddress,
}

impl Drop for Memory {
    fn drop(&mut self) {
        // The driver waits for kernels that use it.
        if self.shared.bind().is_ok() {
            // SAFETY: no buffer names it any more.
            unsafe { (self.shared.symbols.cuMemFree_v2)(self.address) };
        }
    }
}

/// A run of bytes of an allocation.
#[derive(Clone)]
pub struct Buffer {
    memory: Arc<Memory>,
    start: usize,
    n_bytes: usize,
}

impl Buffer {
    /// Its size.
    pub fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// Where it begins, for a kernel.
    pub fn address(&self) -> DeviceAddress {
        self.memory.address + self.start as DeviceAddress
    }

    /// A part of it.
    ///
    /// # Panics
    /// If it is not inside.
    pub fn part(&self, start: usize, n_bytes: usize) -> Buffer {
        let end = start.checked_add(n_bytes);
        assert!(end.is_some_and(|end| end <= self.n_bytes), "a part of a buffer lies inside it");
        Buffer { memory: self.memory.clone(), start: self.start + start, n_bytes }
    }

    /// Copies bytes to its beginning.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If there are more bytes than room.
    pub fn write(&self, bytes: &[u8]) -> Result<(), CudaError> {
        assert!(bytes.len() <= self.n_bytes, "a copy fits its buffer");
        if bytes.is_empty() {
            return Ok(());
        }
        let shared = &self.memory.shared;
        shared.bind()?;
        let (to, from) = (self.address(), bytes.as_ptr().cast::<c_void>());
        // SAFETY: both ends have so many bytes, and `bytes` is waited for.
        let code =
            unsafe { (shared.symbols.cuMemcpyHtoDAsync_v2)(to, from, bytes.len(), shared.stream) };
        shared.check("cuMemcpyHtoDAsync_v2", code)?;
        shared.wait()
    }

    /// Copies its first bytes.
    ///
    /// # Errors
    /// If the driver refuses, or something before it failed.
    ///
    /// # Panics
    /// If it has fewer bytes.
    pub fn read(&self, bytes: &mut [u8]) -> Result<(), CudaError> {
        assert!(bytes.len() <= self.n_bytes, "a copy fits its buffer");
        if bytes.is_empty() {
            return Ok(());
        }
        let shared = &self.memory.shared;
        shared.bind()?;
        let (to, from) = (bytes.as_mut_ptr().cast::<c_void>(), self.address());
        // SAFETY: both ends have so many bytes, and `bytes` is waited for.
        let code =
            unsafe { (shared.symbols.cuMemcpyDtoHAsync_v2)(to, from, bytes.len(), shared.stream) };
        shared.check("cuMemcpyDtoHAsync_v2", code)?;
        shared.wait()
    }

    /// Sets every byte to zero.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn clear(&self) -> Result<(), CudaError> {
        let shared = &self.memory.shared;
        shared.bind()?;
        // SAFETY: the buffer has so many bytes.
        let code = unsafe {
            (shared.symbols.cuMemsetD8Async)(self.address(), 0, self.n_bytes, shared.stream)
        };
        shared.check("cuMemsetD8Async", code)
    }
}

struct Loaded {
    shared: Arc<Shared>,
    handle: Handle,
    registers_per_block: u32,
}

// SAFETY: as for `Shared`.
unsafe impl Send for Loaded {}
// SAFETY: as for `Shared`.
unsafe impl Sync for Loaded {}

impl Drop for Loaded {
    fn drop(&mut self) {
        if self.shared.bind().is_ok() {
            // SAFETY: no kernel of it is left.
            unsafe { (self.shared.symbols.cuModuleUnload)(self.handle) };
        }
    }
}

/// Compiled PTX.
#[derive(Clone)]
pub struct Module {
    loaded: Arc<Loaded>,
}

impl Module {
    /// A kernel of it, to be run by blocks of `n_thread` threads.
    ///
    /// # Errors
    /// If it has none of this name, or the device has not the registers for such a block.
    pub fn kernel(&self, name: &str, n_thread: u32) -> Result<Kernel, CudaError> {
        let Loaded { shared, handle, registers_per_block } = &*self.loaded;
        shared.bind()?;
        let missing = || CudaError::Kernel { name: name.to_owned() };
        let text = CString::new(name).map_err(|_| missing())?;
        let mut function = std::ptr::null_mut();
        // SAFETY: the module is alive and the name ends in a zero byte.
        let code = unsafe {
            let name: *const c_char = text.as_ptr();
            (shared.symbols.cuModuleGetFunction)(&raw mut function, *handle, name)
        };
        shared.check("cuModuleGetFunction", code).map_err(|_| missing())?;
        let attribute = |which| {
            let mut value = 0;
            // SAFETY: the driver writes one integer; the function is alive.
            let code =
                unsafe { (shared.symbols.cuFuncGetAttribute)(&raw mut value, which, function) };
            shared.check("cuFuncGetAttribute", code)?;
            Ok::<_, CudaError>(u32::try_from(value).unwrap_or(0))
        };
        let n_register = attribute(FUNCTION_REGISTERS)?;
        let n_thread_max = attribute(FUNCTION_THREADS_MAX)?;
        if n_register * n_thread > *registers_per_block || n_thread > n_thread_max {
            return Err(CudaError::Resources { name: name.to_owned(), n_register, n_thread });
        }
        Ok(Kernel { loaded: self.loaded.clone(), function, n_thread })
    }
}

/// A kernel and how many threads its blocks have.
#[derive(Clone)]
pub struct Kernel {
    loaded: Arc<Loaded>,
    function: Handle,
    n_thread: u32,
}

// SAFETY: as for `Shared`; the module that the function belongs to lives in `loaded`.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// A kernel's arguments in the order of its declaration.
#[derive(Clone, Debug, Default)]
pub struct Args {
    /// Each in a word of its own; a little-endian processor finds the value at its first byte.
    words: Vec<u64>,
}

impl Args {
    /// No arguments.
    pub fn new() -> Args {
        Args::default()
    }

    /// Adds where a buffer begins.
    #[must_use]
    pub fn buffer(mut self, buffer: &Buffer) -> Args {
        self.words.push(buffer.address());
        self
    }

    /// Adds a buffer that may be absent.
    #[must_use]
    pub fn optional(mut self, buffer: Option<&Buffer>) -> Args {
        self.words.push(buffer.map_or(0, Buffer::address));
        self
    }

    /// Adds a number.
    ///
    /// # Panics
    /// If it does not fit into 32 bits: shapes are checked long before.
    #[must_use]
    pub fn size(mut self, n: usize) -> Args {
        self.words.push(u64::from(u32::try_from(n).expect("sizes for kernels have 32 bits")));
        self
    }

    /// Adds a float.
    #[must_use]
    pub fn float(mut self, value: f32) -> Args {
        self.words.push(u64::from(value.to_bits()));
        self
    }
}

impl Kernel {
    /// Starts it on a grid of blocks.
    ///
    /// # Errors
    /// If the driver refuses. What goes wrong while it runs is told by [`Device::wait`].
    ///
    /// # Safety
    /// `args` are the kernel's, and buffers hold whatever it reads and writes on this grid.
    pub unsafe fn launch(&self, grid: [usize; 3], mut args: Args) -> Result<(), CudaError> {
        let shared = &self.loaded.shared;
        shared.bind()?;
        let [x, y, z] = grid.map(|n| c_uint::try_from(n).unwrap_or(0));
        let mut pointers: Vec<*mut c_void> =
            args.words.iter_mut().map(|word| (word as *mut u64).cast()).collect();
        // SAFETY: the caller's promise; the driver copies the arguments before it returns.
        let code = unsafe {
            (shared.symbols.cuLaunchKernel)(
                self.function,
                x,
                y,
                z,
                self.n_thread,
                1,
                1,
                0,
                shared.stream,
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        shared.check("cuLaunchKernel", code)
    }
}

/// A point of the stream.
pub struct Event {
    shared: Arc<Shared>,
    handle: Handle,
}

impl Event {
    /// Milliseconds of the device from here to a later point, which is waited for.
    ///
    /// # Errors
    /// If the driver refuses, or something between failed.
    pub fn until(&self, later: &Event) -> Result<f32, CudaError> {
        self.shared.bind()?;
        // SAFETY: the handle is alive.
        let code = unsafe { (self.shared.symbols.cuEventSynchronize)(later.handle) };
        self.shared.check("cuEventSynchronize", code)?;
        let mut ms = 0.0;
        // SAFETY: both handles are alive; the driver writes one float.
        let code = unsafe {
            (self.shared.symbols.cuEventElapsedTime)(&raw mut ms, self.handle, later.handle)
        };
        self.shared.check("cuEventElapsedTime", code)?;
        Ok(ms)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.shared.bind().is_ok() {
            // SAFETY: nobody else has it.
            unsafe { (self.shared.symbols.cuEventDestroy_v2)(self.handle) };
        }
    }
}
