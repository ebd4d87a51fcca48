# Functions of a disassembly that have instructions which a Cortex-A57 (ARMv8.0) does not: atomics in one
# instruction, dot products, arithmetic on halves, SVE and the like. One line each: function, mnemonic.
#
#   aarch64-linux-gnu-objdump -d --no-show-raw-insn PROGRAM | awk -f jetpack/instructions.awk
#
# Left out are those that run only where the processor was asked: the compiler's own atomics, which are
# both forms behind a switch, what `ring` has beside its SHA-512 for every processor, what
# `portable_atomic` has beside its 128 bits, and our own kernels with dot products.
BEGIN {
    FS = "\t"
    order = "(a|l|al)?[bh]?$"
    atomic = "^(cas|casp|swp|(ld|st)(add|clr|eor|set|[su]max|[su]min))" order
    other = "^(ldapu?r[bhsw]*|stlur[bh]?|(su|us|[su])dot|(us|[su])mmla|bf(dot|mmla|cvt|mlal)[a-z0-9]*|"
    other = other "sqrdml[as]h|fcmla|fcadd|fml[as]l2?|fjcvtzs|sha512.*|eor3|rax1|xar|bcax|sm[34].*)$"
    half = "(^|[ ,{])(h[0-9]+|v[0-9]+\\.[48]h)"
    sve = "(^|[ ,{])([zp][0-9]+(\\.[bhsdq]|/[mz]))"
    asked = "^(__aarch64_(cas|swp|ld)[a-z]*[0-9]+_[a-z_]+|.*sha512_block_data_order_hw|"
    asked = asked ".*portable_atomic.*_casp_[a-z]+|.*backend3cpu.*(panels|peak)_dotprod.*)$"
}
/^[0-9a-f]+ <.*>:$/ {
    name = $0
    sub(/^[0-9a-f]+ </, "", name)
    sub(/>:$/, "", name)
    next
}
{
    # Conversions of halves are ARMv8.0's; counting with them is not.
    is_half = $2 ~ /^(f|[su]cvtf)/ && $2 !~ /^(fcvt|fcvt[ln]2?|fmov)$/ && $3 ~ half
    if (($2 ~ atomic || $2 ~ other || is_half || $3 ~ sve) && name !~ asked && !seen[name, $2]++) {
        print name, $2
    }
}
