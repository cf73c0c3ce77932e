#compdef gipo-mc
# Completion of gipo-mc in zsh. Where it proposes nothing, files are.
_gipo_mc() {
    local -a found open whole
    found=("${(@f)$("${words[1]}" completion zsh --next "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    found=("${(@)found:#}")
    if (( ! ${#found} )); then
        compset -P '*='
        _files
        return
    fi
    open=("${(@M)found:#*[.=/]}")
    whole=("${(@)found:#*[.=/]}")
    (( ${#open} )) && compadd -S '' -- "${open[@]}"
    (( ${#whole} )) && compadd -- "${whole[@]}"
}
compdef _gipo_mc gipo-mc
