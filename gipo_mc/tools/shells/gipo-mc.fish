# Completion of gipo-mc in fish. Where it proposes nothing, files are.
function __gipo_mc_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l found ($words[1] completion fish --next $words[2..-1] $current 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\n' $found
        return
    end
    set -l key (string match -r '^[^=]*=' -- $current)
    for file in (__fish_complete_path (string replace -r '^[^=]*=' '' -- $current))
        echo "$key$file"
    end
end
complete -c gipo-mc -f -a '(__gipo_mc_complete)'
