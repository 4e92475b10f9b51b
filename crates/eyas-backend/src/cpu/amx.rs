//! The tile of the products with AMX: `bf16` operands and `f32` sums in tile registers, `tdpbf16ps`.
//!
//! A tile register holds 16 rows of 64 bytes. Four of them are 32 x 32 sums; two hold 32 rows of the left-hand operand,
//! as they lie in memory, 32 elements along the depth; two hold 32 columns of the panel, whose pairs of neighbours
//! along the depth are what the instruction multiplies. One step of 32 along the depth is four loads, which take half
//! of the time of the four products that they feed.
//!
//! The instructions come through [`Unit`], because stable Rust has no intrinsics for them; a [`Unit`] in plain Rust
//! stands in for the processor in tests.

use std::marker::PhantomData;

use half::bf16;

use super::microkernel::{Kernel, Term};

/// Rows of a tile register.
const ROWS: usize = 16;
/// Elements of the sums in a row of a tile register.
const COLS: usize = 16;
/// Elements along the depth in a row of a tile register.
const DEPTH: usize = 32;
/// Columns of a panel: two tile registers.
const PANEL: usize = 2 * COLS;

/// What `ldtilecfg` reads: the shapes of the eight tile registers.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Config {
    /// Sums in registers 0 to 3 (row of tiles by column), the left-hand operand in 4 and 5, the panel in 6 and 7; the
    /// first tile of rows has `upper` rows and the second `lower`.
    const fn new(upper: usize, lower: usize) -> Self {
        let mut config =
            Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let rows = [upper, upper, lower, lower, upper, lower, DEPTH / 2, DEPTH / 2];
        let mut i = 0;
        while i < rows.len() {
            config.rows[i] = rows[i] as u8;
            config.row_bytes[i] = 64;
            i += 1;
        }
        config
    }
}

/// Two whole tiles of rows.
static FULL: Config = Config::new(ROWS, ROWS);

/// The instructions of AMX that the kernel needs, on the tile registers of this thread.
///
/// # Safety
/// For all: the processor has the instructions and the kernel lets this process use them; the shapes were loaded; the
/// memory named can be accessed as far as the register's shape reaches.
trait Unit: 'static {
    /// Loads the shapes; the registers become zero.
    unsafe fn configure(config: &Config);
    /// Gives the registers up.
    unsafe fn release();
    /// `tmm[T] = 0`
    unsafe fn zero<const T: usize>();
    /// Reads a register's rows, `stride` bytes apart.
    unsafe fn load<const T: usize>(from: *const u8, stride: usize);
    /// Writes a register's rows, `stride` bytes apart.
    unsafe fn store<const T: usize>(to: *mut u8, stride: usize);
    /// `tmm[C] += tmm[A] * tmm[B]`: pairs of `bf16` along the rows of `A` and down the rows of `B`.
    unsafe fn multiply_add<const C: usize, const A: usize, const B: usize>();
}

/// `bf16` products on the tile registers that `U` stands for: 32 x 32 sums.
pub(super) struct TileKernel<U>(PhantomData<fn() -> U>);

/// The kernel on the processor's own tile registers.
#[cfg(target_arch = "x86_64")]
pub(super) type AmxBf16 = TileKernel<hardware::Amx>;

impl<U: Unit> Kernel for TileKernel<U> {
    type Element = bf16;
    const MR: usize = 2 * ROWS;
    const NR: usize = PANEL;
    const GRAIN: usize = DEPTH;
    const DEPTH: usize = 576;
    const ROWS: usize = 128;

    unsafe fn begin() {
        // SAFETY: the caller promises the instructions.
        unsafe { U::configure(&FULL) };
    }

    unsafe fn end() {
        // SAFETY: the caller promises the instructions.
        unsafe { U::release() };
    }

    unsafe fn tile(rows: usize, terms: &[Term<bf16>], c: *mut f32, c_stride: usize, add: bool) {
        // SAFETY: the caller promises the instructions and the operands; where there are not 16 or 32 rows, the shapes
        // are loaded anew, so that no register reaches past the rows.
        unsafe {
            match rows {
                ROWS => tile::<U, false>(ROWS, terms, c, c_stride, add),
                32 => tile::<U, true>(ROWS, terms, c, c_stride, add),
                1..ROWS => {
                    U::configure(&Config::new(rows, 1));
                    tile::<U, false>(rows, terms, c, c_stride, add);
                    U::configure(&FULL);
                }
                _ => {
                    assert!(rows < 2 * ROWS, "a tile of {rows} rows");
                    U::configure(&Config::new(ROWS, rows - ROWS));
                    tile::<U, true>(ROWS, terms, c, c_stride, add);
                    U::configure(&FULL);
                }
            }
        }
    }
}

/// A tile of `upper` rows and, if `BOTH`, of those below them that the shapes have.
///
/// # Safety
/// As [`Kernel::tile`], with the shapes loaded.
#[inline(always)]
unsafe fn tile<U: Unit, const BOTH: bool>(
    upper: usize,
    terms: &[Term<bf16>],
    c: *mut f32,
    c_stride: usize,
    add: bool,
) {
    let c_bytes = c_stride * size_of::<f32>();
    // SAFETY: the sums lie inside what the caller promises.
    let (right, below) = unsafe { (c.add(COLS), if BOTH { c.add(upper * c_stride) } else { c }) };
    // SAFETY: as above; the panel and, for every row of the shapes, the left-hand operand are as deep as the term says,
    // and its depth is a multiple of a register's.
    unsafe {
        let below_right = below.add(COLS);
        if add {
            U::load::<0>(c.cast(), c_bytes);
            U::load::<1>(right.cast(), c_bytes);
            if BOTH {
                U::load::<2>(below.cast(), c_bytes);
                U::load::<3>(below_right.cast(), c_bytes);
            }
        } else {
            U::zero::<0>();
            U::zero::<1>();
            if BOTH {
                U::zero::<2>();
                U::zero::<3>();
            }
        }
        for term in terms {
            let a_bytes = term.a_stride * size_of::<bf16>();
            let mut a: *const u8 = term.a.cast();
            let mut b: *const u8 = term.b.cast();
            // A row of a register of the panel is a pair of neighbours along the depth in each of 16 columns.
            let b_bytes = PANEL * 2 * size_of::<bf16>();
            let a_below = if BOTH { upper * a_bytes } else { 0 };
            for _ in 0..term.depth / DEPTH {
                U::load::<6>(b, b_bytes);
                U::load::<4>(a, a_bytes);
                U::multiply_add::<0, 4, 6>();
                U::load::<7>(b.add(b_bytes / 2), b_bytes);
                U::multiply_add::<1, 4, 7>();
                if BOTH {
                    U::load::<5>(a.add(a_below), a_bytes);
                    U::multiply_add::<2, 5, 6>();
                    U::multiply_add::<3, 5, 7>();
                }
                a = a.add(DEPTH * size_of::<bf16>());
                b = b.add(DEPTH / 2 * b_bytes);
            }
        }
        U::store::<0>(c.cast(), c_bytes);
        U::store::<1>(right.cast(), c_bytes);
        if BOTH {
            U::store::<2>(below.cast(), c_bytes);
            U::store::<3>(below_right.cast(), c_bytes);
        }
    }
}

/// Whether the processor has the instructions and the operating system lets this process use them. It is asked for
/// once; the answer is kept.
pub(super) fn is_available() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        use std::sync::OnceLock;
        static AVAILABLE: OnceLock<bool> = OnceLock::new();
        *AVAILABLE.get_or_init(|| hardware::has_instructions() && hardware::request_tiles())
    }
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    false
}

#[cfg(target_arch = "x86_64")]
mod hardware {
    use std::arch::asm;

    use super::{Config, Unit};

    /// The processor's tile registers.
    ///
    /// No function is compiled with AMX enabled, so the compiler never touches these registers itself: what one
    /// instruction leaves in them, the next finds.
    pub(in super::super) struct Amx;

    impl Unit for Amx {
        #[inline(always)]
        unsafe fn configure(config: &Config) {
            // SAFETY: the caller promises the instructions; 64 bytes are read.
            unsafe { asm!("ldtilecfg [{}]", in(reg) config, options(nostack, readonly, preserves_flags)) };
        }

        #[inline(always)]
        unsafe fn release() {
            // SAFETY: the caller promises the instructions.
            unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
        }

        #[inline(always)]
        unsafe fn zero<const T: usize>() {
            // SAFETY: the caller promises the instructions and the shapes.
            unsafe { asm!("tilezero tmm{}", const T, options(nostack, nomem, preserves_flags)) };
        }

        #[inline(always)]
        unsafe fn load<const T: usize>(from: *const u8, stride: usize) {
            // SAFETY: the caller promises the memory.
            unsafe {
                asm!(
                    "tileloadd tmm{tile}, [{from} + {stride}*1]",
                    tile = const T,
                    from = in(reg) from,
                    stride = in(reg) stride,
                    options(nostack, readonly, preserves_flags)
                );
            }
        }

        #[inline(always)]
        unsafe fn store<const T: usize>(to: *mut u8, stride: usize) {
            // SAFETY: the caller promises the memory.
            unsafe {
                asm!(
                    "tilestored [{to} + {stride}*1], tmm{tile}",
                    tile = const T,
                    to = in(reg) to,
                    stride = in(reg) stride,
                    options(nostack, preserves_flags)
                );
            }
        }

        #[inline(always)]
        unsafe fn multiply_add<const C: usize, const A: usize, const B: usize>() {
            // SAFETY: the caller promises the instructions and the shapes.
            unsafe {
                asm!(
                    "tdpbf16ps tmm{c}, tmm{a}, tmm{b}",
                    c = const C,
                    a = const A,
                    b = const B,
                    options(nostack, nomem, preserves_flags)
                );
            }
        }
    }

    /// AMX-TILE and AMX-BF16, with the tiles' state switched on by the operating system.
    #[cfg(target_os = "linux")]
    pub(super) fn has_instructions() -> bool {
        use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

        /// The system has switched `xgetbv` on.
        const OSXSAVE: u32 = 1 << 27;
        const AMX_BF16: u32 = 1 << 22;
        const AMX_TILE: u32 = 1 << 24;
        /// The parts of the state that are shapes and registers.
        const TILE_STATE: u64 = 1 << 17 | 1 << 18;
        #[target_feature(enable = "xsave")]
        fn enabled_state() -> u64 {
            // SAFETY: the function is called where the processor and the system have the instruction.
            unsafe { _xgetbv(0) }
        }
        if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 {
            return false;
        }
        let features = __cpuid_count(7, 0).edx;
        if features & AMX_BF16 == 0 || features & AMX_TILE == 0 {
            return false;
        }
        // SAFETY: OSXSAVE says that the instruction is there.
        let enabled = unsafe { enabled_state() };
        enabled & TILE_STATE == TILE_STATE
    }

    /// Asks Linux to let this process use the tile registers (`arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`).
    #[cfg(target_os = "linux")]
    pub(super) fn request_tiles() -> bool {
        const ARCH_PRCTL: i64 = 158;
        const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
        const XFEATURE_XTILEDATA: u64 = 18;
        let result: i64;
        // SAFETY: the system call takes two numbers and changes nothing but this process's permission; it clobbers
        // what every system call does.
        unsafe {
            asm!(
                "syscall",
                inlateout("rax") ARCH_PRCTL => result,
                in("rdi") ARCH_REQ_XCOMP_PERM,
                in("rsi") XFEATURE_XTILEDATA,
                lateout("rcx") _,
                lateout("r11") _,
                options(nostack)
            );
        }
        result == 0
    }
}

#[cfg(test)]
pub(super) use emulation::EmulatedAmx;

#[cfg(test)]
mod emulation;
