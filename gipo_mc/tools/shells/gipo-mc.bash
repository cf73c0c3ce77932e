# Completion of gipo-mc in bash. Where it proposes nothing, readline proposes files.
_gipo_mc() {
    local IFS=$'\n' line=${COMP_LINE:0:COMP_POINT} current cut=
    local -a words
    # COMP_WORDS is cut at "=", which stands in the middle of key=value.
    IFS=$' \t' read -ra words <<<"$line"
    [[ $line == *[$' \t'] ]] && words+=("")
    current=${words[-1]}
    [[ $current == *=* && $COMP_WORDBREAKS == *=* ]] && cut=${current%=*}=
    mapfile -t COMPREPLY < <("${words[0]}" completion bash --next "${words[@]:1}" 2>/dev/null)
    COMPREPLY=("${COMPREPLY[@]#"$cut"}")
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[.=/] ]] && compopt -o nospace
    return 0
}
complete -o default -F _gipo_mc gipo-mc
